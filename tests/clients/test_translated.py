"""OpenAI's SDK asks Anthropic's models: what chat completions can say is translated both ways."""

import json

import openai
import pytest

from rig import CLAUDE, eventually

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt, **more):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    return {"model": CLAUDE, "messages": messages, "max_tokens": 200} | more


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
SCHEMA = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}


def look(**more):
    """A question with an image and tools, one of which has to be called."""
    content = [
        {"type": "text", "text": "What is on it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("zoom", "ask")]
    choice = {"type": "function", "function": {"name": "ask"}}
    messages = [{"role": "user", "content": content}]
    return {"model": CLAUDE, "max_tokens": 500, "messages": messages, "tools": tools, "tool_choice": choice} | more


def asked(oracle):
    """What Anthropic's model calls its tool with, if it is asked in Anthropic's words."""
    content = [
        {"type": "text", "text": "What is on it?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
    ]
    message = oracle.anthropic().messages.create(
        model=CLAUDE,
        max_tokens=500,
        messages=[{"role": "user", "content": content}],
        tools=[{"name": name, "input_schema": SCHEMA} for name in ("zoom", "ask")],
        tool_choice={"type": "tool", "name": "ask"},
    )
    (block,) = message.content
    assert (block.type, block.name, message.stop_reason) == ("tool_use", "ask", "tool_use")
    return block.input


def with_result(call, result):
    """The same conversation one turn later: the tool was called, and gave something."""
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    given = {"role": "tool", "tool_call_id": call["id"], "content": result}
    return look(tool_choice="auto") | {"messages": [*look()["messages"], said, given]}


def straight(oracle, prompt):
    """What Anthropic's model answers to the same words."""
    message = oracle.anthropic().messages.create(
        model=CLAUDE, max_tokens=200, system="Be brief.", messages=[{"role": "user", "content": prompt}]
    )
    return message.content[0].text, message.usage


def test_now_and_deferred(rig, oracle):
    text, usage = straight(oracle, "What is a gateway?")
    for headers, mode in (({}, "realtime"), (DAY, "deferred")):
        create = rig.client().chat.completions.with_raw_response.create
        raw = create(**ask("What is a gateway?"), extra_headers=headers)
        answer = raw.parse()
        assert raw.headers["x-offpeak-mode"] == mode
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.content == text
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (usage.input_tokens, usage.output_tokens)
    assert rig.provider.billed("realtime")["requests"] == 1
    batch = rig.provider.billed("batch")
    assert batch["requests"] == 1
    assert batch["cost"] * 2 == batch["realtime_cost"]


def test_a_stream_with_usage(rig, oracle):
    text, usage = straight(oracle, "Tell me.")
    stream = rig.client().chat.completions.create(**ask("Tell me."), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == usage.output_tokens


@pytest.mark.parametrize(("headers", "mode"), [({}, "realtime"), (DAY, "batch")])
def test_images_tools_and_their_results(rig, oracle, headers, mode):
    create = rig.client().chat.completions.create
    choice = create(**look(), extra_headers=headers).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "ask")
    assert json.loads(call.function.arguments) == asked(oracle)

    answer = create(**with_result(call.model_dump(), "a cat on a mat"), extra_headers=headers).choices[0]
    text, _ = straight(oracle, "a cat on a mat")
    assert (answer.message.content, answer.finish_reason, answer.message.tool_calls) == (text, "stop", None)
    assert rig.provider.billed(mode)["requests"] == 2

    # A result that belongs to no call: the provider's refusal, in OpenAI's words.
    stray = with_result(call.model_dump(), "a cat")
    stray["messages"][-1]["tool_call_id"] = "toolu_of_another"
    with pytest.raises(openai.BadRequestError) as raised:
        create(**stray, extra_headers=headers)
    assert "tool_use" in raised.value.message


def test_a_tool_is_called_in_a_stream(rig, oracle):
    chunks = [chunk.choices[0] for chunk in rig.client().chat.completions.create(**look(), stream=True)]
    calls = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert len(calls) > 3, "the arguments come piece by piece"
    assert (calls[0].function.name, calls[0].index) == ("ask", 0)
    assert calls[0].id.startswith("toolu_")
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == asked(oracle)
    assert chunks[-1].finish_reason == "tool_calls"


def test_what_cannot_be_translated_is_refused(rig):
    with pytest.raises(openai.BadRequestError) as raised:
        rig.client().chat.completions.create(**ask("twice", n=2))
    assert raised.value.param == "n"
    assert rig.provider.bill()["lines"] == []


def test_in_a_job(rig, oracle):
    client = rig.client()
    lines = [
        {"custom_id": f"item-{n}", "method": "POST", "url": "/v1/chat/completions", "body": ask(f"question {n}")}
        for n in range(5)
    ]
    lines.append({"custom_id": "look", "method": "POST", "url": "/v1/chat/completions", "body": look()})
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    job = eventually(
        lambda: (found := client.batches.retrieve(job.id)).completed_at and found, "the end of the job"
    )
    assert (job.status, job.request_counts.completed) == ("completed", 6)
    answers = [json.loads(line) for line in client.files.content(job.output_file_id).text.splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"] for line in answers}
    assert found["item-3"]["content"] == straight(oracle, "question 3")[0]
    (call,) = found["look"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == asked(oracle)
