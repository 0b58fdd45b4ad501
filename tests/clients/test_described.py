"""The description of the API against the API: calls made from it, right and wrong ones, and whether answers are as it says."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from rig import CLAUDE, MODEL
from rig.daemon import KEYS
from rig.programs import clean_environment

# Calls are passed on, so what a provider takes is not for this description to say; all else is checked.
PASSED_ON = "negative_data_rejection,positive_data_acceptance"

SEED = "7"
EXAMPLES = "25"

# Far more than it takes; a call that is held open for ever would be found by this.
LIMIT = 300

HELLO = [{"role": "user", "content": "hello"}]


def things(rig):
    """Something of every kind that the API keeps: the parameter that names it, and its id."""
    client = rig.client()
    ask = {"model": MODEL, "messages": HELLO}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ask}
    file = client.files.create(file=("requests.jsonl", json.dumps(line).encode()), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    upload = client.uploads.create(bytes=10, filename="a.jsonl", mime_type="text/jsonl", purpose="batch")
    response = client.responses.create(model=MODEL, input="hello", background=True)
    headers = {"x-offpeak-sla": "24h", "prefer": "respond-async"}
    ticket = client.chat.completions.with_raw_response.create(**ask, extra_headers=headers)
    params = {"model": CLAUDE, "max_tokens": 10, "messages": HELLO}
    messages = rig.daemon.anthropic().messages.batches.create(requests=[{"custom_id": "1", "params": params}])
    return {
        "File": file.id,
        "Batch": job.id,
        "Upload": upload.id,
        "Response": response.id,
        "Ticket": ticket.headers["location"].rsplit("/", 1)[1],
        "MessageBatch": messages.id,
    }


@pytest.fixture
def description(rig, tmp_path):
    """The description, with the ids of what is there among others."""
    document = httpx2.get(f"{rig.daemon.admin}/admin/v1/openapi").raise_for_status().json()
    parameters = document["components"]["parameters"]
    for name, identity in things(rig).items():
        parameters[name]["schema"] = {"enum": [identity, f"{identity}0", "another"]}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def test_answers_are_as_they_are_described(rig, description, tmp_path):
    schemathesis = Path(sys.executable).with_name("st")
    command = [str(schemathesis), "run", str(description), "--url", rig.daemon.url]
    command += ["--header", f"Authorization: Bearer {KEYS['search']}"]
    command += ["--seed", SEED, "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing"]
    command += ["--exclude-checks", PASSED_ON, "--continue-on-failure", "--no-shrink", "--request-timeout", "30"]
    done = subprocess.run(
        command, env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    # It would also succeed if it had nothing to call.
    assert "Tested: 33" in done.stdout, done.stdout
    assert rig.client().models.list().data
