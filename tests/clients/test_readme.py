"""What the README shows works as it stands there, but for the addresses."""

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from anthropic import Anthropic
from openai import OpenAI

from rig import KEYS, MODEL, eventually
from rig.programs import clean_environment, program_path

README = (Path(__file__).parents[2] / "README.md").read_text()
CHAT = "/v1/chat/completions"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def here(text, rig):
    """The README's addresses and omissions, filled in."""
    return (
        text.replace("http://127.0.0.1:8400", rig.daemon.url)
        .replace("http://127.0.0.1:8401", rig.daemon.admin)
        .replace('api_key="..."', f'api_key="{KEYS["search"]}"')
        .replace("messages=[...]", 'messages=[{"role": "user", "content": "hello"}]')
        .replace('"messages": [...]', '"messages": [{"role": "user", "content": "hello"}]')
    )


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """The file that the README speaks of, where the snippets run."""
    monkeypatch.chdir(tmp_path)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    lines = [{"custom_id": str(n), "method": "POST", "url": CHAT, "body": body} for n in range(3)]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.mark.filterwarnings("ignore:unclosed file")  # a snippet leaves that to the interpreter, as snippets do
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(rig, requests, number):
    snippet = here(blocks("python")[number], rig)
    sooner = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.05)))
    names = {"OpenAI": OpenAI, "Anthropic": Anthropic, "time": sooner, "client": rig.client()}
    exec(compile(snippet, f"snippet {number} of README.md", "exec"), names)
    if "answers" in names:
        assert len(names["answers"].splitlines()) == 3
    if "results" in names:
        assert [result.result.type for result in names["results"]] == ["succeeded"]
    if "upload" in names:
        assert names["upload"].status == "completed"
    names["client"].close()


def test_submit(rig, requests):
    shown = next(line for block in blocks("sh") for line in block.splitlines() if line.startswith("offpeak submit"))
    command = [str(program_path("OFFPEAK_BIN")), *shlex.split(shown)[1:]]
    environment = clean_environment(OFFPEAK_URL=rig.daemon.url, OFFPEAK_API_KEY=KEYS["search"])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "completed, 3 of 3 answered" in done.stdout
    assert len(Path("requests.output.jsonl").read_text().splitlines()) == 3


def test_a_ticket_by_curl(rig):
    """The daemon of the README lets everybody in; this one wants a key."""
    block = here(next(block for block in blocks("sh") if "respond-async" in block), rig)
    ask, look, cancel = (
        command.replace("curl", f"curl -s -H 'authorization: Bearer {KEYS['search']}'", 1)
        for command in re.findall(r"^curl.*?[^\\]$", block, re.DOTALL | re.MULTILINE)
    )

    def run(command):
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout

    ticket = run(ask)
    assert "HTTP/1.1 202 Accepted" in ticket
    location = re.search(r"(?m)^location: (\S+)", ticket)[1]
    assert location in look, "the README shows the first ticket of a new daemon"
    answer = eventually(lambda: json.loads(run(look)).get("choices"), "the answer")
    assert answer[0]["message"]["content"]
    assert "already_finished" in run(cancel)


def section(title):
    """What stands under a heading."""
    return re.search(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README)[1]


def commands(text):
    """The commands of a section's blocks, without what is said beside them."""
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    return [line.split(" #")[0].rstrip() for line in lines if line and not line.startswith("#")]


@pytest.fixture
def run(rig, tmp_path):
    """Runs a command of the README as it stands there, but for the daemon's addresses; it must succeed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "offpeak").symlink_to(program_path("OFFPEAK_BIN"))

    def run(command, **variables):
        environment = clean_environment(OFFPEAK_ADMIN_URL=rig.daemon.admin, **variables)
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        command = here(command, rig).replace("curl ", "curl --silent --show-error --fail ", 1)
        done = subprocess.run(
            ["bash", "-ec", command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


def test_the_page_of_tenants(rig, run, tmp_path):
    text = section("Tenants")
    shown = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    backend = '[backends.any]\nbase_url = "http://127.0.0.1:9"\nmodels = ["*"]\n'
    (tmp_path / "shown.toml").write_text(shown + backend)
    told = run("offpeak check --config shown.toml", SEARCH_KEY="sk-1")
    assert "3000 requests, 5000000 input tokens a minute" in told, told
    create, *others = commands(text)
    assert [command.split()[:3] for command in others] == [["offpeak", "keys", verb] for verb in ("list", "rotate", "revoke")]
    name = re.search(r"key-\w+", run(create))[0]
    listed, *others = others
    assert name in run(listed)
    for command in others:
        assert "key-" in command
        run(re.sub(r"key-\w+", name, command))


def test_the_page_of_costs(rig, run, tmp_path):
    rig.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    table, by_purpose, focus, api = commands(section("Costs"))
    eventually(lambda: MODEL in run(table), "the call is in the ledger")
    assert "purpose" in run(by_purpose).splitlines()[0]
    run(focus)
    assert (tmp_path / "november.csv").read_text().startswith("BilledCost,")
    assert json.loads(run(api))["total"]["outcomes"] == 1


def test_the_page_of_operating(rig, run):
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "later"}]}
    rig.client().chat.completions.create(**ask, extra_headers={"x-offpeak-sla": "24h"})
    calls = [command for command in commands(section("Operating it")) if command.startswith("curl")]
    assert len(calls) >= 8
    for command in calls:
        assert run(command)
