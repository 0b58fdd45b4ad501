"""Plugins in each language, from a new folder to a running daemon, as the README has them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from rig import MODEL, Settings, eventually
from rig.daemon import KEYS
from rig.programs import clean_environment, program_path

SOURCES = Path(__file__).parents[2]
EXAMPLES = SOURCES / "plugins" / "examples"
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
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def tools():
    """Where the tool chains of the languages are, as somebody has them who followed the READMEs."""
    # The target folder, so that what a plugin in Rust is made of is compiled once.
    shared = program_path("OFFPEAK_BIN").parents[1] / "new-plugins"
    variables = {"PYTHON": sys.executable, "CC": f"{sys.executable} -m ziglang cc", "CARGO_TARGET_DIR": str(shared)}
    # Go, where pip has put it.
    variables["GO"] = str(Path(sys.executable).with_name("go"))
    # componentize-qjs and the TypeScript compiler, where `npm install` has put them.
    if node_tools := os.environ.get("PLUGIN_NODE_TOOLS"):
        variables["PATH"] = os.pathsep.join([node_tools, os.environ["PATH"]])
    named = {"RUSTC": "PLUGIN_RUSTC", "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER": "PLUGIN_LINKER"}
    variables |= {name: os.environ[ours] for name, ours in named.items() if ours in os.environ}
    # All that a plugin is made of was fetched for the workspace.
    return variables | {"CARGO_NET_OFFLINE": "true"}


def build(folder, out):
    """Runs the folder's own tests and builds its component."""
    done = offpeak("build", folder, "--out", out, **tools())
    assert done.returncode == 0, done.stdout + done.stderr
    (component,) = out.glob("*-*.wasm")
    return component


def with_node_modules(folder):
    """As `npm install` leaves it; the TypeScript compiler looks for Node's types there."""
    if packages := os.environ.get("PLUGIN_NODE_TOOLS"):
        (folder / "node_modules").symlink_to(Path(packages).parent)


def copy_of(example, sources):
    """An example in sources of its own: what a language's tools write beside it stays there."""
    folder = sources / "plugins" / "examples" / example
    shutil.copytree(EXAMPLES / example, folder, ignore=shutil.ignore_patterns("build", "bindings", "node_modules"))
    (sources / "wit").symlink_to(SOURCES / "wit")
    with_node_modules(folder)
    return folder


@pytest.fixture(scope="module")
def component(tmp_path_factory):
    return build(EXAMPLES / "working-hours", tmp_path_factory.mktemp("example"))


def trial(component, *arguments, world="router"):
    """How `offpeak plugin check` finds a component of one world."""
    done = offpeak("check", component, "--json", "--time-limit", "5s", *arguments)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert all(interface["offered"] for interface in report["imports"])
    (trial,) = report["worlds"]
    assert trial["world"] == world
    assert trial["memory_bytes"] < trial["memory_limit_bytes"]
    return trial


WORLDS = ["router", "retry-policy", "cost-policy"]
PLUGINS = [("rust", world) for world in [*WORLDS, "provider", "engine"]]
PLUGINS += [(language, world) for language in ["c", "javascript", "typescript", "go"] for world in WORLDS]
# The examples in Python are the templates of the other two worlds, and each build takes its time.
PLUGINS += [("python", "cost-policy")]


def golden(component, cases):
    """What `offpeak plugin test` says of a component."""
    done = offpeak("test", component, "--cases", cases, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["failed"]) == (0, 0), report
    return report["passed"]


@pytest.mark.parametrize(("language", "world"), PLUGINS)
def test_a_new_plugin_builds_passes_its_own_tests_and_runs(language, world, tmp_path):
    sdk = ["--sdk", SOURCES / "sdk" / "rust"] if language == "rust" else []
    made = offpeak("new", "night-owl", "--lang", language, "--world", world, "--in", tmp_path, *sdk)
    assert made.returncode == 0, made.stderr
    assert "offpeak plugin check build/night-owl.wasm" in made.stdout
    if language == "typescript":
        with_node_modules(tmp_path / "night-owl")
    component = build(tmp_path / "night-owl", tmp_path / "out")
    assert component.name == "night-owl.wasm"
    assert golden(component, tmp_path / "night-owl" / "cases") >= 2
    found = trial(component, world=world)
    assert found["describes_itself_as"] == "night-owl 1"
    if language in ["rust", "c"]:
        assert found["memory_bytes"] < 4 << 20, "nothing leaks in a thousand calls"
    again = offpeak("new", "night-owl", "--in", tmp_path)
    assert again.returncode == 64 and "is there already" in again.stderr


@pytest.mark.parametrize("example", ["by-department", "by-size", "customer-margin", "maintenance-hours", "split-traffic"])
def test_an_example_builds_and_passes_its_cases(example, tmp_path):
    component = build(copy_of(example, tmp_path / "sources"), tmp_path)
    assert golden(component, EXAMPLES / example / "cases") >= 3


def test_the_types_beside_the_example_in_typescript_are_those_of_a_new_plugin(tmp_path):
    offpeak("new", "night-owl", "--lang", "typescript", "--in", tmp_path)
    (types,) = (tmp_path / "night-owl" / "types").iterdir()
    assert (EXAMPLES / "split-traffic" / "types" / types.name).read_text() == types.read_text()


def test_a_case_that_fails_shows_what_differs(component, tmp_path):
    case = tmp_path / "case.toml"
    case.write_text('[[case]]\nname = "all at once"\nrequest = { sla = "24h" }\ngives = { choose = { offer = "standard" } }\n')
    done = offpeak("test", component, "--cases", case)
    assert done.returncode == 1
    assert 'choose.offer\n          - "standard"\n          + "batch"' in done.stdout, done.stdout
    assert "0 of 1 cases" in done.stdout


def test_a_component_is_measured(component):
    done = offpeak("bench", component, "--time", "200ms", "--threads", "2", "--json")
    assert done.returncode == 0, done.stderr
    (world,) = json.loads(done.stdout)["worlds"]
    (route,) = world["functions"]
    assert route["calls"] > 0 and route["p99_us"] >= route["p50_us"]
    assert world["instance_bytes"] > 1 << 20, "with Python's runtime in it"


def test_a_plugin_in_c_whose_tests_fail_is_not_built(tmp_path):
    offpeak("new", "night-owl", "--lang", "c", "--in", tmp_path)
    source = tmp_path / "night-owl" / "night_owl.c"
    source.write_text(source.read_text().replace(">= settings->large", "> settings->large"))
    done = offpeak("build", tmp_path / "night-owl", **tools())
    assert done.returncode == 1
    assert "what is large and can wait goes in a batch" in done.stderr
    assert not (tmp_path / "night-owl" / "build" / "night-owl.wasm").exists()


def test_a_type_error_in_typescript_and_a_failing_test_in_go_stop_the_build(tmp_path):
    offpeak("new", "night-owl", "--lang", "typescript", "--in", tmp_path)
    source = tmp_path / "night-owl" / "night-owl.ts"
    source.write_text(source.read_text() + "\nconsole.log(readSettings(1));\n")
    done = offpeak("build", tmp_path / "night-owl", **tools())
    assert done.returncode == 1
    assert "Cannot find name 'console'" in done.stderr and "not assignable to parameter of type 'string'" in done.stderr
    offpeak("new", "early-bird", "--lang", "go", "--in", tmp_path)
    source = tmp_path / "early-bird" / "plugin.go"
    source.write_text(source.read_text().replace("if !candidate.Healthy", "if candidate.Healthy"))
    done = offpeak("build", tmp_path / "early-bird", **tools())
    assert done.returncode == 1
    assert "mail gets standard and not batch" in done.stderr or "--- FAIL" in done.stderr, done.stderr
    assert not (tmp_path / "early-bird" / "build" / "early-bird.wasm").exists()


# Python's and TypeScript's do the same in the same words, and take a minute each to build and compile.
THROWN = {
    "javascript": ("plugin.js", "=> choose(settled(), envelope, candidates)", "=> { throw new Error('not today'); }"),
    "go": ("plugin.go", "return Choose(settled(), envelope, candidates)", 'panic("not today")'),
}


@pytest.mark.parametrize("language", THROWN)
def test_an_exception_is_said_to_whoever_wrote_it(language, tmp_path):
    offpeak("new", "night-owl", "--lang", language, "--in", tmp_path)
    name, before, after = THROWN[language]
    source = tmp_path / "night-owl" / name
    assert before in source.read_text()
    source.write_text(source.read_text().replace(before, after))
    component = build(tmp_path / "night-owl", tmp_path / "out")
    done = offpeak("check", component, "--time-limit", "5s")
    assert done.returncode == 1
    assert "it crashed: not today" in done.stdout, done.stdout
    done = offpeak("test", component, "--cases", tmp_path / "night-owl" / "cases")
    assert "it crashed: not today" in done.stdout, done.stdout


def test_an_offer_that_nobody_made_is_said_before_the_daemon_says_it(tmp_path):
    offpeak("new", "night-owl", "--lang", "c", "--in", tmp_path)
    source = tmp_path / "night-owl" / "night_owl.c"
    chosen = "router_string_dup_n(&choice->offer, (const char *)offer->ptr, offer->len);"
    assert chosen in source.read_text()
    source.write_text(source.read_text().replace(chosen, '(void)offer; router_string_dup(&choice->offer, "brisk");'))
    component = build(tmp_path / "night-owl", tmp_path / "out")
    done = offpeak("check", component)
    assert done.returncode == 1
    assert 'it chose the offer "brisk" of the backend "openai", which is not among the candidates' in done.stdout, done.stdout
    assert offpeak("test", component, "--cases", tmp_path / "night-owl" / "cases").returncode == 1


def test_a_new_plugin_in_python_is_the_example_by_another_name(tmp_path):
    made = offpeak("new", "night-owl", "--lang", "python", "--in", tmp_path)
    assert made.returncode == 0, made.stderr
    assert "componentize-py" in made.stdout
    for path in (EXAMPLES / "working-hours").glob("*.py"):
        copy = tmp_path / "night-owl" / path.name.replace("working_hours", "night_owl")
        text = path.read_text().replace("working_hours", "night_owl").replace("working-hours", "night-owl")
        assert copy.read_text() == text
    for path in (tmp_path / "night-owl" / "wit").iterdir():
        assert path.read_text() == (SOURCES / "wit" / path.name).read_text()


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


def test_a_setting_that_it_does_not_take_is_named(component, cache, tmp_path):
    def checked(table):
        plugins = f"[plugins]\ncache = {json.dumps(str(cache))}"
        backend = '[backends.b]\nbase_url = "http://127.0.0.1:9"\nmodels = ["*"]'
        router = f"[plugins.router]\nfile = {json.dumps(str(component))}\ntime_limit = '5s'"
        path = tmp_path / "offpeak.toml"
        path.write_text(f"[access]\nopen = true\n{backend}\n{plugins}\n{router}\n[plugins.router.config]\n{table}\n")
        command = [str(program_path("OFFPEAK_BIN")), "check", "--config", str(path)]
        environment = clean_environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    right = checked("begin = 9")
    assert right.returncode == 0, right.stderr
    misspelt = checked("begin = 9\nbegn = 10")
    assert misspelt.returncode == 64
    assert "the plugin 'router' does not take its settings in [plugins.router.config]" in misspelt.stderr
    assert "unknown settings: begn; there are hurried, begin and end; mend that" in misspelt.stderr
    # Python says what is wrong with the value, and not whose value it is.
    crashed = checked("begin = 'ten'\nend = 20")
    assert crashed.returncode == 64
    assert "'ten'; it starts without the key `begin`: mend that one" in crashed.stderr, crashed.stderr
    assert "unreachable" not in crashed.stderr


def test_it_imports_nothing_of_the_system_and_keeps_its_limits(component):
    found = trial(component, "--calls", "200")
    assert found["describes_itself_as"] == "working-hours 1"
    (route,) = found["calls"]
    assert route["said"] == "chose flex at openai"


def test_a_cost_policy_in_javascript_charges_departments_in_the_daemon(start, tmp_path):
    component = build(EXAMPLES / "by-department", tmp_path / "out")
    settings = Settings(
        more=f"""
[plugins.cost_policy]
file = {json.dumps(str(component))}
time_limit = "5s"

[plugins.cost_policy.config]
departments = {{ research = ["search"] }}
"""
    )
    rig = start(settings=settings)
    rig.client().chat.completions.create(model=MODEL, messages=ASK["messages"])

    def payers():
        rows = httpx2.get(f"{rig.daemon.admin}/admin/v1/costs?by=tenant").json()["data"]
        return [row["tenant"] for row in rows]

    assert eventually(payers, "the call is in the ledger") == ["research"]
