"""OpenAI's SDK asks Anthropic's models: what chat completions can say is translated both ways."""

import json

import openai
import pytest

from rig import CLAUDE, eventually

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt, **more):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    return {"model": CLAUDE, "messages": messages, "max_tokens": 200} | more


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
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    job = eventually(
        lambda: (found := client.batches.retrieve(job.id)).completed_at and found, "the end of the job"
    )
    assert (job.status, job.request_counts.completed) == ("completed", 5)
    answers = [json.loads(line) for line in client.files.content(job.output_file_id).text.splitlines()]
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in answers}
    assert found["item-3"] == straight(oracle, "question 3")[0]
