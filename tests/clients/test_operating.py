"""The operator's commands, as the README has them, and the official SDK under what they set."""

import csv
import io
import json
import subprocess

import openai
import pytest

from rig import MODEL, eventually
from rig.programs import clean_environment, program_path

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def offpeak(rig, *arguments):
    """Runs a command against the daemon's admin plane; it must succeed."""
    return rig.daemon.command(*arguments).stdout


def create(rig, *arguments):
    made = json.loads(offpeak(rig, "keys", "create", "search", "--json", *arguments))
    return made["id"], made["key"]


def client(rig, key, **options):
    return openai.OpenAI(base_url=f"{rig.daemon.url}/v1", api_key=key, **options)


def test_keys_from_creation_to_end(start):
    rig = start()
    first, key = create(rig, "--label", "ci", "--expires-in", "90d")
    assert client(rig, key).chat.completions.create(**ASK).choices
    rotated = json.loads(offpeak(rig, "keys", "rotate", first, "--overlap", "24h", "--json"))
    assert client(rig, key).chat.completions.create(**ASK).choices
    assert client(rig, rotated["key"]).chat.completions.create(**ASK).choices
    assert offpeak(rig, "keys", "revoke", first) == f"{first} is revoked\n"
    with pytest.raises(openai.AuthenticationError):
        client(rig, key).chat.completions.create(**ASK)
    listed = offpeak(rig, "keys", "list").splitlines()
    assert listed[0].split() == ["id", "tenant", "label", "accepted", "expires"]
    assert [line.split()[3] for line in listed[1:]] == ["revoked", "yes"]


def test_scopes_and_limits_reach_the_sdk_in_its_own_errors(start):
    rig = start()
    _, narrow = create(rig, "--endpoint", "/v1/embeddings")
    with pytest.raises(openai.PermissionDeniedError) as raised:
        client(rig, narrow).chat.completions.create(**ASK)
    assert raised.value.code == "out_of_scope"
    _, slow = create(rig, "--requests-per-minute", "60")
    impatient = client(rig, slow, max_retries=0)
    with pytest.raises(openai.RateLimitError) as raised:
        for _ in range(100):
            impatient.chat.completions.create(**ASK)
    headers = raised.value.response.headers
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert 0 < int(headers["retry-after-ms"]) <= 1000
    # The SDK waits for as long as it is told, and succeeds at its first try again.
    assert client(rig, slow, max_retries=1).chat.completions.create(**ASK).choices


def test_costs_in_every_form(start):
    rig = start()
    rig.client().chat.completions.create(**ASK)

    def total():
        report = json.loads(offpeak(rig, "costs", "--format", "json"))
        return report["total"] if report["total"]["outcomes"] == 1 else None

    assert eventually(total, "the call is in the ledger")["cost_usd"] != "0"
    table = offpeak(rig, "costs").splitlines()
    assert table[0].split()[:4] == ["tenant", "model", "mode", "outcomes"]
    assert table[1].split()[:4] == ["search", MODEL, "realtime", "1"]
    assert table[2].startswith("all ")
    by_month = offpeak(rig, "costs", "--by", "tenant,purpose", "--from", "2020-01-01", "--to", "2021-01-01")
    assert len(by_month.splitlines()) == 2, "nothing was spent then"
    [line] = csv.DictReader(io.StringIO(offpeak(rig, "costs", "--format", "focus")))
    assert (line["SubAccountId"], line["BillingCurrency"]) == ("search", "USD")
    [line] = csv.DictReader(io.StringIO(offpeak(rig, "costs", "--by", "model", "--format", "csv")))
    assert (line["model"], line["outcomes"]) == (MODEL, "1")


def test_without_a_daemon_it_is_said(tmp_path):
    command = [str(program_path("OFFPEAK_BIN")), "costs", "--admin-url", "http://127.0.0.1:9"]
    done = subprocess.run(
        command, env=clean_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "offpeak serve" in done.stderr) == (69, True)


def test_the_data_folder_is_looked_after_while_the_daemon_is_stopped(start, tmp_path):
    rig = start()

    def db(command):
        arguments = [str(program_path("OFFPEAK_BIN")), "db", command, "--json", "--folder", str(tmp_path / "data")]
        done = subprocess.run(
            arguments, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout or done.stderr

    rig.client().chat.completions.create(**ASK, extra_headers={"x-offpeak-sla": "24h"})
    code, text = db("check")
    assert code == 64 and "another process uses the data folder" in text
    rig.daemon.kill()
    code, text = db("check")
    told = json.loads(text)
    assert (code, told["healthy"], told["findings"]) == (0, True, []), text
    code, text = db("compact")
    assert code == 0 and json.loads(text)["index_bytes"] > 0, text
    rig.daemon.start()
    assert rig.client().chat.completions.create(**ASK).choices
