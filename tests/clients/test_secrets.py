"""Nothing that opens a door is written anywhere: not in the log, however much it tells, nor in the store, answers, metrics or reports."""

import base64
import json

import anthropic
import httpx2
import openai
import pytest

from rig import CLAUDE, KEYS, MODEL, PROVIDER_KEY, Settings, eventually

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
CLAUDE_ASKS = {"model": CLAUDE, "max_tokens": 20, "messages": ASK["messages"]}

# A key that is none here is another service's as likely as not.
FOREIGN = "sk-of-some-other-service-0123456789"
# What a webhook is signed with.
SIGNING = base64.b64encode(b"signed with thirty-two bytes ...").decode()

PAGES = ["lanes", "batches", "plugins", "costs", "keys", "offers", "openapi"]


def forms(secret):
    """As it is, and as it would be in headers and dumps of them."""
    encoded = [base64.b64encode(f"{before}{secret}".encode()).decode() for before in ("", "Bearer ", ":")]
    return [secret, secret.encode().hex(), *(text.rstrip("=") for text in encoded)]


def holders(secrets, texts):
    """Which text has which secret."""
    return [
        (name, where)
        for name, secret in secrets.items()
        for where, text in texts.items()
        if any(form.encode() in text for form in forms(secret))
    ]


def use(rig, key):
    """Whatever clients do, rightly and wrongly; returns what they were told."""
    answers = {}

    def note(name, answer):
        answers[f"the answer to {name}"] = json.dumps([list(answer.headers.items()), answer.text]).encode()
        return answer

    def call(name, key, body=ASK, path="/v1/chat/completions", **headers):
        headers = {"authorization": f"Bearer {key}"} | headers
        return note(name, httpx2.post(f"{rig.daemon.url}{path}", json=body, headers=headers))

    assert call("a tenant's key", KEYS["search"]).status_code == 200
    assert call("a key made here", key).status_code == 200
    assert call("a stream", key, ASK | {"stream": True}).status_code == 200
    assert call("another's key", FOREIGN).status_code == 401
    assert call("another's key in the address", KEYS["search"], path=f"/v1/files/{FOREIGN}").status_code in (404, 405)
    assert call("an unknown model", key, ASK | {"model": "gpt-unheard-of"}).status_code == 404
    assert call("a body that is none", key, "no object").status_code == 400
    assert call("a hop's own key", key, **{"proxy-authorization": f"Basic {FOREIGN}"}).status_code == 200
    rig.provider.next("chat_completions", "status", status=500)
    call("a failure at the provider", key)
    held = call("a held call", key, **{"x-offpeak-sla": "24h"})
    assert held.status_code == 200
    ticket = call("a ticket", key, **{"x-offpeak-sla": "24h", "prefer": "respond-async"})
    where = f"{rig.daemon.url}{ticket.headers['location']}"

    def redeemed():
        answer = httpx2.get(where, headers={"authorization": f"Bearer {key}"})
        return answer if answer.status_code == 200 else None

    note("a ticket that is redeemed", eventually(redeemed, "its answer"))

    messages = rig.anthropic().messages.batches.create(requests=[{"custom_id": "one", "params": CLAUDE_ASKS}])
    assert rig.anthropic().messages.create(**CLAUDE_ASKS).content
    foreign = anthropic.Anthropic(base_url=rig.daemon.url, api_key=FOREIGN)
    with foreign, pytest.raises(anthropic.AuthenticationError) as refused:
        foreign.messages.create(**CLAUDE_ASKS)
    note("another's key at Anthropic's API", refused.value.response)

    sdk = openai.OpenAI(base_url=f"{rig.daemon.url}/v1", api_key=key)
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": ASK}
    file = sdk.files.create(file=("job.jsonl", json.dumps(line).encode()), purpose="batch")
    job = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    eventually(lambda: sdk.batches.retrieve(job.id).status == "completed", "the job is done")
    batches = rig.anthropic().messages.batches
    eventually(lambda: batches.retrieve(messages.id).processing_status == "ended", "the messages are there")
    sdk.close()
    return answers


@pytest.mark.parametrize("level", ["info", "trace"])
def test_no_secret_is_written_anywhere(start, tmp_path, level):
    signing = tmp_path / "webhook.secret"
    signing.write_text(f"whsec_{SIGNING}")
    alerts = f'[alerts]\nurl = "http://127.0.0.1:9/hook"\nsecret = {{ file = {json.dumps(str(signing))} }}\ninternal = true'
    budget = '[tenants.search.budget]\nday_usd = "0.000001"\nhard = false'
    rig = start(settings=Settings(log=level, more=f"{budget}\n{alerts}"))
    made = json.loads(rig.daemon.command("keys", "create", "search", "--json").stdout)
    texts = use(rig, made["key"])

    for page in PAGES:
        answer = httpx2.get(f"{rig.daemon.admin}/admin/v1/{page}").raise_for_status()
        texts[f"the page {page}"] = answer.content
    texts["the metrics"] = httpx2.get(f"{rig.daemon.admin}/metrics").content
    for command in [["keys", "list"], ["costs", "--format", "json"], ["plugin", "list"], ["check", "--config", rig.daemon.config]]:
        done = rig.daemon.command(*command)
        texts[f"`offpeak {command[0]}`"] = (done.stdout + done.stderr).encode()
    assert rig.daemon.stop() == 0
    texts["the log"] = rig.daemon.log.read_bytes()
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    texts |= {f"the file {path.name}": path.read_bytes() for path in kept}
    assert len(kept) >= 3, "the store, its log, and the secret of the keys' hashes"

    secrets = {f"the key of {tenant}": key for tenant, key in KEYS.items()}
    secrets |= {"the provider's": PROVIDER_KEY, "another service's": FOREIGN, "a key made here": made["key"], "the webhook's": SIGNING}
    assert holders(secrets, texts) == []
    # The same search finds what is there.
    assert holders({"a model": MODEL}, texts) != []
    assert any(b"budget is reached" in text for text in texts.values()), "the webhook was tried"
