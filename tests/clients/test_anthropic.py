"""Anthropic's SDK works against offpeak as it does against Anthropic: now, deferred, and in message batches."""

import anthropic
import pytest

from rig import CLAUDE

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
        (529, anthropic.OverloadedError if hasattr(anthropic, "OverloadedError") else anthropic.InternalServerError),
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
        rig.anthropic().messages.create(**ask("x") | {"model": "claude-of-elsewhere-but-gpt"} | {"model": "of-nobody"})
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
