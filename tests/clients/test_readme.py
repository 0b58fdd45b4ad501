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
