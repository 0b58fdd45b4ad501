"""Anthropic's SDK works against offpeak as it does against Anthropic: now, deferred, and in message batches."""

import anthropic
import pytest

from rig import CLAUDE, eventually

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt, **more):
    return {"model": CLAUDE, "max_tokens": 200, "messages": [{"role": "user", "content": prompt}]} | more


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


# --- Now ------------------------------------------------------------------------------------------------------------


def test_messages(rig, oracle):
    raw = rig.anthropic().messages.with_raw_response.create(**ask("What is a gateway?"))
    message, expected = raw.parse(), oracle.anthropic().messages.create(**ask("What is a gateway?"))
    assert (message.content, message.stop_reason) == (expected.content, expected.stop_reason)
    assert message.usage.input_tokens == expected.usage.input_tokens > 0
    assert message.usage.output_tokens == expected.usage.output_tokens > 0
    assert raw.headers["x-offpeak-mode"] == "realtime"
    assert rig.provider.billed("realtime")["requests"] == 1


def test_streams_pass_all_their_events(rig, oracle):
    expected = oracle.anthropic().messages.create(**ask("Tell me."))
    events = list(rig.anthropic().messages.create(**ask("Tell me."), stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert {"content_block_start", "content_block_delta", "content_block_stop"} <= set(kinds)
    with rig.anthropic().messages.stream(**ask("Tell me.")) as stream:
        assert "".join(stream.text_stream) == text(expected)
        assert stream.get_final_message().usage.output_tokens == expected.usage.output_tokens


def test_count_tokens(rig, oracle):
    request = {"model": CLAUDE, "messages": [{"role": "user", "content": "How many?"}]}
    counted = rig.anthropic().messages.count_tokens(**request)
    assert counted.input_tokens == oracle.anthropic().messages.count_tokens(**request).input_tokens > 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (403, anthropic.PermissionDeniedError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.OverloadedError),
    ],
)
def test_errors_of_the_provider_are_the_sdks_own(rig, status, kind):
    rig.provider.next("messages", "status", status=status)
    with pytest.raises(kind) as raised:
        rig.anthropic(max_retries=0).messages.create(**ask("x"))
    assert raised.value.status_code == status
    assert raised.value.body["type"] == "error"


def test_errors_of_offpeak_speak_anthropics_dialect(rig):
    with pytest.raises(anthropic.AuthenticationError) as raised:
        rig.anthropic().with_options(api_key="sk-of-nobody").messages.create(**ask("x"))
    assert raised.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as raised:
        rig.anthropic().messages.create(**ask("x", model="of-nobody"))
    assert raised.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as raised:
        rig.anthropic().messages.create(**ask("x"), extra_headers={"x-offpeak-sla": "soon"})
    assert raised.value.body["error"]["type"] == "invalid_request_error"


def test_the_sdk_retries_what_passes(rig):
    rig.provider.next("messages", "status", status=529)
    assert text(rig.anthropic().messages.create(**ask("again")))
    assert rig.provider.calls("messages") == 2


# --- Later ------------------------------------------------------------------------------------------------------------


def test_a_held_call_is_answered_at_half_price(rig, oracle):
    raw = rig.anthropic().messages.with_raw_response.create(**ask("whenever"), extra_headers=DAY)
    assert raw.parse().content == oracle.anthropic().messages.create(**ask("whenever")).content
    assert raw.headers["x-offpeak-mode"] == "deferred"
    billed = rig.provider.billed("batch")
    assert billed["requests"] == 1
    assert billed["cost"] * 2 == billed["realtime_cost"] > 0
    assert rig.provider.billed("realtime")["requests"] == 0

# --- Message batches ----------------------------------------------------------------------------------------------------


def batch(client, params):
    requests = [{"custom_id": name, "params": body} for name, body in params.items()]
    return client.messages.batches.create(requests=requests)


def ended(client, job):
    def look():
        found = client.messages.batches.retrieve(job.id)
        return found if found.processing_status == "ended" else None

    return eventually(look, f"the end of {job.id}")


def test_a_message_batch(rig, oracle):
    client = rig.anthropic()
    params = {f"item-{number}": ask(f"question {number}") for number in range(12)}
    params["item-5"] = ask("too much", max_tokens=0)
    job = batch(client, params)
    assert job.id.startswith("msgbatch_")
    assert job.processing_status == "in_progress"
    assert (job.expires_at - job.created_at).total_seconds() == 24 * 3600
    job = ended(client, job)
    counts = job.request_counts
    assert (counts.processing, counts.succeeded, counts.errored) == (0, 11, 1)
    assert job.ended_at and job.results_url
    results = {line.custom_id: line.result for line in client.messages.batches.results(job.id)}
    assert set(results) == set(params)
    assert results["item-5"].type == "errored"
    assert results["item-5"].error.error.type == "invalid_request_error"
    expected = oracle.anthropic().messages.create(**params["item-3"])
    assert results["item-3"].message.content == expected.content
    again = ended(client, batch(client, {"item-5": ask("enough")}))
    assert again.request_counts.succeeded == 1
    billed = rig.provider.billed("batch")
    assert billed["requests"] == 12
    assert billed["cost"] * 2 == billed["realtime_cost"]
    assert client.messages.batches.delete(job.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(job.id)


def test_lists_go_page_by_page(rig):
    client = rig.anthropic()
    jobs = [batch(client, {"a": ask(f"batch {number}")}).id for number in range(5)]
    assert [job.id for job in client.messages.batches.list(limit=2)] == jobs[::-1]


def test_a_cancelled_batch(rig):
    rig.provider.next_batch_takes(20)
    client = rig.anthropic()
    job = batch(client, {"a": ask("one"), "b": ask("two")})
    eventually(lambda: rig.provider.calls("create_message_batch"), "the batch has left")
    assert client.messages.batches.cancel(job.id).processing_status in ("canceling", "ended")
    job = ended(client, job)
    assert job.request_counts.canceled == 2
    assert {line.result.type for line in client.messages.batches.results(job.id)} == {"canceled"}


def test_to_other_tenants_nothing_of_it_exists(rig):
    client, other = rig.anthropic(), rig.anthropic("mail")
    job = ended(client, batch(client, {"a": ask("a secret")}))
    for look in (other.messages.batches.retrieve, other.messages.batches.cancel, other.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            look(job.id)
    assert list(other.messages.batches.list()) == []
