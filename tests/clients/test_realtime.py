"""What is not tagged passes straight through, as if offpeak were not there."""

import time

import pytest

from rig import MODEL

GAP = 0.03


def ask(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def test_chat(rig, oracle):
    request = ask("What is a gateway?")
    raw = rig.client().chat.completions.with_raw_response.create(**request)
    answer, expected = raw.parse(), oracle.client().chat.completions.create(**request)
    assert answer.choices == expected.choices
    assert answer.usage == expected.usage
    assert raw.headers["x-offpeak-mode"] == "realtime"
    assert raw.headers["x-offpeak-request-id"]
    assert answer._request_id == raw.headers["x-request-id"], "the provider's own name for it"
    billed = rig.provider.billed("realtime")
    assert billed["requests"] == 1
    assert billed["cost"] == billed["realtime_cost"] > 0


def test_stream(start, oracle):
    rig = start("--stream-gap-ms", str(int(GAP * 1000)))
    request = ask("Tell me, word by word.") | {"stream": True, "stream_options": {"include_usage": True}}
    arrivals, chunks = [], []
    for chunk in rig.client().chat.completions.create(**request):
        arrivals.append(time.monotonic())
        chunks.append(chunk)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expected = oracle.client().chat.completions.create(**ask("Tell me, word by word."))
    assert text == expected.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == expected.usage
    assert len(chunks) > 10
    assert arrivals[-1] - arrivals[0] > GAP * (len(chunks) - 1) / 2, "chunks arrive when they are made"


def test_stream_without_usage(rig):
    chunks = list(rig.client().chat.completions.create(**ask("and again"), stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding_format": "float"},
        {"dimensions": 64},
        {"input": ["one", "two", "three"]},
        {"input": [[1, 2, 3], [4, 5]], "encoding_format": "float"},
    ],
    ids=["base64 by default", "float", "dimensions", "texts", "token numbers"],
)
def test_embeddings(rig, oracle, options):
    request = {"model": "text-embedding-3-small", "input": "near and far"} | options
    answer = rig.client().embeddings.create(**request)
    expected = oracle.client().embeddings.create(**request)
    assert answer.data == expected.data
    assert all(isinstance(number, float) for number in answer.data[0].embedding)
    assert answer.usage == expected.usage


def test_completions(rig, oracle):
    request = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20}
    expected = oracle.client().completions.create(**request)
    assert rig.client().completions.create(**request).choices == expected.choices
    streamed = rig.client().completions.create(**request, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == expected.choices[0].text


def test_responses(rig, oracle):
    request = {"model": "gpt-5-mini", "input": "Say something."}
    expected = oracle.client().responses.create(**request)
    answer = rig.client().responses.create(**request)
    assert (answer.output_text, answer.usage) == (expected.output_text, expected.usage)
    events = list(rig.client().responses.create(**request, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == expected.output_text


def test_the_provider_sees_its_own_key_and_no_tag(rig):
    """The simulator refuses other keys, and would refuse unknown members of the body."""
    answer = rig.client().chat.completions.create(
        **ask("now"), extra_headers={"x-offpeak-sla": "24h"}, extra_body={"metadata": {"offpeak_sla": "realtime"}}
    )
    assert answer.choices[0].message.content
    assert rig.provider.billed("batch")["requests"] == 1, "the header is the strongest tag"
