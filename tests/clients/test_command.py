"""The command line: what the binary says and with which code it ends."""

import json
import re
import socket
import subprocess
from pathlib import Path

import httpx2
import pytest

from rig.programs import LIMIT, Program, clean_environment, program_path

EXAMPLE = Path(__file__).parents[2] / "config" / "offpeak.toml"

# Exit code for what the user has to mend (EX_USAGE of sysexits.h).
USAGE = 64

LEAST = """
[access]
open = true

[backends.b]
base_url = "http://127.0.0.1:9"
models = ["*"]
"""


def offpeak(*arguments, folder, **variables):
    command = [str(program_path("OFFPEAK_BIN")), *map(str, arguments)]
    environment = clean_environment(**variables)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def configuration(folder, text):
    path = folder / "offpeak.toml"
    path.write_text(text)
    return path


def test_the_example_is_valid(tmp_path):
    checked = offpeak("check", "--config", EXAMPLE, folder=tmp_path, OPENAI_API_KEY="sk-very-secret")
    assert checked.returncode == 0, checked.stderr
    assert "sk-very-secret" not in checked.stdout + checked.stderr
    as_json = offpeak("check", "--json", "--config", EXAMPLE, folder=tmp_path, OPENAI_API_KEY="sk-very-secret")
    assert json.loads(as_json.stdout)["server"]["listen"] == "127.0.0.1:8400"
    assert "sk-very-secret" not in as_json.stdout
    assert list(tmp_path.iterdir()) == [], "a check leaves nothing behind"


def test_a_missing_secret_is_named(tmp_path):
    checked = offpeak("check", "--config", EXAMPLE, folder=tmp_path)
    assert checked.returncode == USAGE
    assert "OPENAI_API_KEY" in checked.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_unknown_keys_are_refused_with_the_line_and_a_suggestion(tmp_path, command):
    text = f"{LEAST}\n[lanes]\nlingr = \"1s\"\n"
    line = text.splitlines().index('lingr = "1s"') + 1
    ended = offpeak(command, "--config", configuration(tmp_path, text), folder=tmp_path)
    assert ended.returncode == USAGE
    assert f"offpeak.toml:{line}" in ended.stderr
    assert "did you mean `linger`?" in ended.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_plugins_settings_are_tried(tmp_path, command, cache):
    text = f"[plugins]\ncache = {json.dumps(str(cache))}\n{LEAST}\nconfig.widnow = '7d'\n"
    ended = offpeak(command, "--config", configuration(tmp_path, text), folder=tmp_path)
    assert ended.returncode == USAGE
    assert "backend 'b'" in ended.stderr
    assert "unknown field `widnow`, expected one of" in ended.stderr
    assert "[backends.b.config]" in ended.stderr and "at the key `widnow`; mend that one" in ended.stderr
    refusal = ended.stderr.splitlines()[-1]  # the plugin's own log stands before it
    assert "panicked" not in refusal and "unreachable" not in refusal, "it is no crash"
    text = text.replace("widnow", "window")
    if command == "check":
        assert offpeak(command, "--config", configuration(tmp_path, text), folder=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("table", "wrong", "said"),
    [
        ("router", "safty = 2", "unknown field `safty`"),
        ("router", "safety = 'much'", "at the key `safety`; mend that one"),
        ("retry_policy", "permament = []", "unknown field `permament`"),
        ("cost_policy", "usd_per_hour = { gpu = 'two' }", "at the key `usd_per_hour.gpu`; mend that one"),
    ],
)
def test_so_are_those_of_policies(tmp_path, cache, table, wrong, said):
    text = f"[plugins]\ncache = {json.dumps(str(cache))}\n{LEAST}\n[plugins.{table}.config]\n{wrong}\n"
    ended = offpeak("check", "--config", configuration(tmp_path, text), folder=tmp_path)
    assert ended.returncode == USAGE
    assert f"does not take its settings in [plugins.{table}.config]: " in ended.stderr, ended.stderr
    assert said in ended.stderr, ended.stderr
    assert "unreachable" not in ended.stderr


def test_a_file_that_is_not_there(tmp_path):
    ended = offpeak("serve", "--config", tmp_path / "none.toml", folder=tmp_path)
    assert ended.returncode == USAGE
    assert "none.toml" in ended.stderr


def test_an_address_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = f'[server]\nlisten = "127.0.0.1:{port}"\nadmin = "127.0.0.1:0"\n'
        ended = offpeak("serve", "--config", configuration(tmp_path, server + LEAST), folder=tmp_path)
    assert ended.returncode == USAGE
    assert str(port) in ended.stderr


def test_variables_go_over_the_file(tmp_path):
    path = configuration(tmp_path, LEAST)
    checked = offpeak("check", "--json", "--config", path, folder=tmp_path, OFFPEAK_LANES__LINGER="7s")
    assert json.loads(checked.stdout)["backends"][0]["lanes"]["linger"] == "7s"


def test_the_demo_is_right(tmp_path):
    demo = offpeak("demo", "--realtime", 40, "--deferrable", 300, "--json", folder=tmp_path)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    report = json.loads(demo.stdout)
    assert report["realtime"] == {"sent": 40, "right": 40, "wrong": 0, "missing": 0}
    assert report["deferrable"] == {"sent": 300, "right": 300, "wrong": 0, "missing": 0}
    assert report["ran_more_than_once"] == 0
    half = report["deferrable_at_realtime_price"]["picodollars"]
    assert report["bill_of_deferrable"]["picodollars"] * 2 == half


def test_a_demo_that_went_wrong_says_so(tmp_path):
    """The simulated provider fails all that comes in batches, as anybody who knows its address can tell it."""
    command = [str(program_path("OFFPEAK_BIN")), "demo", "--realtime", "10", "--deferrable", "60"]
    demo = Program(command, tmp_path / "demo.log", clean_environment())
    try:
        provider = demo.wait_for(r"running at (http://\S+), offpeak at")[1]
        plan = {"set": {"items": [{"fault": {"kind": "status", "status": 400}}]}}
        httpx2.post(f"{provider}/sim/faults", json=plan).raise_for_status()
        assert demo.process.wait(LIMIT) == 1, demo.output()
    finally:
        demo.kill()
    assert re.search(r"(?m)^  deferrable +60 +0 +60 +0$", demo.output()), demo.output()
    assert re.search(r"(?m)^  real time +10 +10 +0 +0$", demo.output()), demo.output()
    assert "NOT RIGHT" in demo.output()
