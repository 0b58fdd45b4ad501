"""Plugins in Python, from a new folder to a running daemon, as the README has them."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from rig import MODEL, Settings
from rig.daemon import KEYS
from rig.programs import clean_environment, program_path

EXAMPLE = Path(__file__).parents[2] / "plugins" / "examples" / "working-hours"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "no hurry"}]}

# The whole day is working hours, and one tenant is in a hurry.
HURRIED = """
[plugins.router.config]
hurried = ["search"]
begin = 0
end = 24
"""


def offpeak(*arguments, **variables):
    command = [str(program_path("OFFPEAK_BIN")), "plugin", *map(str, arguments)]
    environment = clean_environment(**variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def build(folder, out):
    """Runs the folder's own tests and builds its component."""
    command = [sys.executable, "-B", str(folder / "build.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 5 tests" in done.stderr
    (component,) = out.glob("*.wasm")
    return component


@pytest.fixture(scope="module")
def component(tmp_path_factory):
    return build(EXAMPLE, tmp_path_factory.mktemp("example"))


def test_a_new_plugin_builds_and_passes_its_own_tests(tmp_path):
    made = offpeak("new", "night-owl", "--lang", "python", "--in", tmp_path)
    assert made.returncode == 0, made.stderr
    assert "offpeak plugin check build/night-owl.wasm" in made.stdout
    component = build(tmp_path / "night-owl", tmp_path / "out")
    assert component.name == "night-owl.wasm"
    again = offpeak("new", "night-owl", "--in", tmp_path)
    assert again.returncode == 64 and "is there already" in again.stderr


def test_the_daemon_takes_it_and_follows_it(component, start):
    settings = Settings(router=f"file = {json.dumps(str(component))}\non_failure = 'reject'", more=HURRIED)
    rig = start(settings=settings)

    def ask(tenant, **headers):
        headers |= {"authorization": f"Bearer {KEYS[tenant]}", "prefer": "respond-async"}
        return httpx2.post(f"{rig.daemon.url}/v1/chat/completions", headers=headers, json=ASK)

    assert ask("mail", **{"x-offpeak-sla": "24h"}).status_code == 202
    hurried = ask("search", **{"x-offpeak-sla": "24h"})
    assert (hurried.status_code, hurried.headers["x-offpeak-mode"]) == (200, "realtime")
    assert ask("mail").status_code == 200, "real time is left to the bundled router"
    assert str(component) in offpeak("list", OFFPEAK_ADMIN_URL=rig.daemon.admin).stdout
    rows = json.loads(offpeak("list", "--json", OFFPEAK_ADMIN_URL=rig.daemon.admin).stdout)["data"]
    (row,) = [row for row in rows if row["source"] == str(component)]
    assert (row["role"], row["errors"]) == ("router", 0)
    assert row["calls"] >= 4
    reloaded = offpeak("reload", OFFPEAK_ADMIN_URL=rig.daemon.admin)
    assert reloaded.returncode == 0 and "as before" in reloaded.stdout


def test_it_imports_nothing_of_the_system_and_keeps_its_limits(component):
    done = offpeak("check", component, "--json", "--time-limit", "5s", "--calls", "200")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    (trial,) = report["worlds"]
    assert (trial["world"], trial["describes_itself_as"]) == ("router", "working-hours 1")
    assert all(interface["offered"] for interface in report["imports"])
    assert trial["memory_bytes"] < trial["memory_limit_bytes"]
    (route,) = trial["calls"]
    assert route["said"] == "chose flex at openai"
