"""`offpeak explain`, as an operator runs it while a batch stands still."""

import json
import re
import subprocess

from rig import MODEL, Settings, eventually
from rig.programs import clean_environment, program_path

ASYNC = {"x-offpeak-sla": "24h", "prefer": "respond-async"}


def explain(rig, *arguments):
    command = [str(program_path("OFFPEAK_BIN")), "explain", *arguments]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def take(rig, prompt):
    """A ticket's id."""
    ask = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
    taken = rig.client().chat.completions.with_raw_response.create(**ask, extra_headers=ASYNC)
    return taken.headers["location"].rsplit("/", 1)[1]


def test_a_request_and_a_lane_of_a_stalled_batch(start):
    rig = start(settings=Settings(linger="1h"))
    rig.provider.plan(next_batch=[[{"kind": "stall"}]])
    here = ("--admin-url", rig.daemon.admin)
    requests = [take(rig, f"question {n}") for n in range(6)]
    rig.daemon.flush()

    def told():
        code, text, error = explain(rig, requests[0], *here)
        assert (code, error) == (0, "")
        return text if re.search(r"says that 3 of them are done, which has not changed for \ds", text) else None

    text = eventually(told, "the operator hears that the batch stands still")
    lines = text.splitlines()
    assert lines[0] == f"{requests[0]}: in batch"
    assert re.fullmatch(r"  due in 23h 5\dm \d+s", lines[1]), text
    assert re.search(r"left \S.* ago in batch \S+ with \d+ request\(s\), as 'batch' of 'simulated'", text)
    assert re.search(r"in 23h \d+m \d+s: unless it is about to end, it is cancelled", text), text
    assert re.search(r"in 23h \d+m \d+s: what has no answer then is run in real time", text), text

    code, text, _ = explain(rig, requests[0], "--json", *here)
    whole = json.loads(text)
    assert (code, whole["about"], whole["state"]) == (0, requests[0], "in_batch")
    assert len(whole["next"]) == 2 and all(coming["in_ms"] > 0 for coming in whole["next"])

    # The lane has sent it away, and waits for nothing itself.
    [lane] = rig.daemon.ask("/admin/v1/lanes")["data"]
    code, text, _ = explain(rig, str(lane["id"]), *here)
    assert (code, text.splitlines()[0]) == (0, f"lane {lane['id']}: empty"), text
    take(rig, "one more")
    code, text, _ = explain(rig, str(lane["id"]), *here)
    assert (code, text.splitlines()[0]) == (0, f"lane {lane['id']}: waiting"), text
    assert re.search(r"(?m)^  in \d+m \d+s: it leaves; until then others may join it$", text), text
    assert "at least" in text and "'batch' of 'simulated' at 50%" in text


def test_what_cannot_be_explained_is_said(rig):
    code, text, error = explain(rig, "dfr-77-1", "--admin-url", rig.daemon.admin)
    assert (code, text) == (1, "") and "There is no such lane or request" in error
    code, text, error = explain(rig, "0", "--admin-url", "http://127.0.0.1:9")
    assert (code, text) == (1, "") and "--admin-url" in error and "server.admin" in error
