"""What the README shows works as it stands there, but for the addresses."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from anthropic import Anthropic
from openai import OpenAI

from rig import CLAUDE, KEYS, MODEL, PROVIDER_KEY, Settings, eventually
from rig.programs import Program, clean_environment, program_path

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


def toml(mark):
    """The block of configuration that has this in it."""
    (found,) = (block for block in blocks("toml") if mark in block)
    return found


def test_the_quick_start(start_provider, oracle, tmp_path, cache):
    """From the configuration as it is typed in there to answers, in both APIs; then the folder is looked after."""
    provider = start_provider()
    script = next(block for block in blocks("sh") if "cat > offpeak.toml" in block)
    programs = tmp_path / "target" / "release"
    programs.mkdir(parents=True)
    (programs / "offpeak").symlink_to(program_path("OFFPEAK_BIN"))
    assert script.startswith("cargo build --release\n"), "what we are given has been built"
    script = script.replace("cargo build --release\n", "").replace("https://api.openai.com", provider.url)
    script = script.replace("OPENAI_API_KEY=sk-...", f"OPENAI_API_KEY={PROVIDER_KEY}")
    further = toml("[backends.anthropic]").replace("https://api.anthropic.com", provider.url)
    script = script.replace("\nEND\n", f"\n\n{further}END\n")
    before, serve = script.split("offpeak serve")
    assert serve == "\n"
    environment = clean_environment(
        ANTHROPIC_API_KEY=PROVIDER_KEY,
        OFFPEAK_SERVER__LISTEN="127.0.0.1:0",
        OFFPEAK_SERVER__ADMIN="127.0.0.1:0",
        OFFPEAK_PLUGINS__CACHE=str(cache),
        OFFPEAK_PLUGINS__ROUTER__TIME_LIMIT="5s",
    )
    command = ["bash", "-ec", f"cd {shlex.quote(str(tmp_path))}\n{before}exec offpeak serve"]
    program = Program(command, tmp_path / "offpeak.log", environment)
    try:
        data = program.wait_for(r"offpeak is ready data=(\S+) admin=\S+\n")[1]
        assert "openai at http" in program.output() and "provider  anthropic" in program.output()
        ask = {"messages": [{"role": "user", "content": "hello"}]}
        with OpenAI(base_url=f"http://{data}/v1", api_key="any") as client:
            for model in (MODEL, CLAUDE):
                answer = client.chat.completions.create(model=model, **ask)
                assert answer.choices[0].message.content.startswith("echo ")
        with Anthropic(base_url=f"http://{data}", api_key="any") as client:
            mine = client.messages.create(model=CLAUDE, max_tokens=100, **ask)
        assert mine.content == oracle.anthropic().messages.create(model=CLAUDE, max_tokens=100, **ask).content
        assert program.stop() == 0
    finally:
        program.kill()
    looking_after = [line for line in commands(section("Operating it")) if line.startswith("offpeak db")]
    assert len(looking_after) == 2
    for line in looking_after:
        environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        environment["OPENAI_API_KEY"] = PROVIDER_KEY
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


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
    create, paced, *others = commands(text)
    assert [command.split()[:3] for command in others] == [["offpeak", "keys", verb] for verb in ("list", "rotate", "revoke")]
    name, other = (re.search(r"key-\w+", run(command))[0] for command in (create, paced))
    listed, *others = others
    told = run(listed)
    assert name in told and other in told
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


def test_the_route_with_an_answer_of_its_own(start, tmp_path):
    """Ten calls fail; then the backend is left alone, and calls of this route get its answer as soon as they have waited."""
    shown = toml("[routes.summaries]")
    assert 'wait = "5s"' in shown
    rig = start(settings=Settings(more=shown.replace('wait = "5s"', 'wait = "100ms"')))
    rig.provider.kill()
    client = rig.client(max_retries=0)

    def answer():
        ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {KEYS['search']}"}
        response = httpx2.post(f"{rig.daemon.url}{CHAT}", json=ask, headers=headers)
        return response if response.status_code == 200 else None

    told = eventually(answer, "the answer of the route")
    assert told.headers["x-offpeak-mode"] == "fallback"
    assert told.json()["choices"][0]["message"]["content"] == "No summary for now."
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    answered = client.chat.completions.create(**ask)
    assert answered.choices[0].message.content == "No summary for now."


def test_explanations(start, tmp_path):
    rig = start(settings=Settings(linger="1h"))
    headers = {"x-offpeak-sla": "24h", "prefer": "respond-async", "authorization": f"Bearer {KEYS['search']}"}
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "later"}]}
    ticket = httpx2.post(f"{rig.daemon.url}{CHAT}", headers=headers, json=ask).headers["x-offpeak-request-id"]
    (lane,) = eventually(lambda: rig.daemon.ask("/admin/v1/lanes")["data"], "the lane")
    block = next(block for block in blocks("sh") if "offpeak explain" in block)
    about_request, about_lane = (line.split(" #")[0].split() for line in block.splitlines())
    names = {about_request[2]: ticket, about_lane[2]: str(lane["id"])}
    for line in (about_request, about_lane):
        command = [str(program_path("OFFPEAK_BIN")), *line[1:-1], names[line[-1]]]
        done = subprocess.run(
            command,
            env=clean_environment(OFFPEAK_ADMIN_URL=rig.daemon.admin),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "waiting" in done.stdout and "50% of the list price" in done.stdout, done.stdout
    assert "GET /admin/v1/explain/3" in block
    assert rig.daemon.ask(f"/admin/v1/explain/{lane['id']}")


def test_a_plugin_of_ones_own(start, tmp_path):
    """From a new folder to a daemon that asks it, and takes in the next version while it runs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "offpeak").symlink_to(program_path("OFFPEAK_BIN"))
    lines = [line for line in commands(section("Configuration")) if line.startswith("offpeak plugin")]
    assert [line.split()[2] for line in lines] == ["new", "build", "test", "check", "reload", "list"]
    compiler = f"{sys.executable} -m ziglang cc"

    def run(line, **variables):
        environment = clean_environment(PYTHON=sys.executable, CC=compiler, **variables)
        environment["PATH"] = f"{programs}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", line],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    new, build, test, check, reload, listed = lines
    run(new)
    run(build)
    run(test)
    assert "It can be taken into use" in run(check)
    shown = toml("[plugins.router]")
    assert check.split()[-1] in shown, "what is checked is what is named in the configuration"
    chosen = shown.replace("[plugins.router]\n", "").replace('"my-router/', f'"{tmp_path}/my-router/')
    rig = start(settings=Settings(router=chosen))
    rig.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    told = run(listed, OFFPEAK_ADMIN_URL=rig.daemon.admin)
    assert re.search(r"(?m)^\S+ +router .*my-router.wasm", told), told
    assert "as before" in run(reload, OFFPEAK_ADMIN_URL=rig.daemon.admin)
