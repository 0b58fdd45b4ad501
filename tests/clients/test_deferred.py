"""What can wait is answered right, at half price, on the call that unchanged code already makes."""

import asyncio

import pytest

from rig import MODEL, Settings

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


@pytest.mark.parametrize(
    "tag",
    [
        {"extra_headers": DAY},
        {"extra_headers": {"x-offpeak-sla": "deferrable"}},
        {"metadata": {"offpeak_sla": "6h"}},
        {"metadata": {"offpeak_sla": "6h", "project": "mine"}},
        {"service_tier": "flex"},
    ],
    ids=["header", "the word deferrable", "metadata", "metadata with more in it", "service_tier"],
)
def test_held(rig, oracle, tag):
    raw = rig.client().chat.completions.with_raw_response.create(**ask("whenever"), **tag)
    expected = oracle.client().chat.completions.create(**ask("whenever"))
    assert raw.parse().choices == expected.choices
    assert raw.parse().usage == expected.usage
    assert raw.headers["x-offpeak-mode"] == "deferred"
    assert raw.headers["x-offpeak-request-id"].startswith("dfr-")
    assert raw.headers["x-offpeak-attempts"] == "1"
    billed = rig.provider.billed("batch")
    assert billed["requests"] == 1
    assert billed["cost"] * 2 == billed["realtime_cost"] > 0
    assert rig.provider.billed("realtime")["requests"] == 0


def test_flex_is_bought_where_it_is_sold(start):
    rig = start(settings=Settings(flex=True))
    raw = rig.client().chat.completions.with_raw_response.create(**ask("soon enough"), service_tier="flex")
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-offpeak-mode"] == "realtime"
    billed = rig.provider.billed("flex")
    assert billed["requests"] == 1
    assert billed["cost"] * 2 == billed["realtime_cost"] > 0


def test_every_endpoint(rig, oracle):
    def both(call):
        return [call(client) for client in (rig.client().with_options(default_headers=DAY), oracle.client())]

    chat = both(lambda client: client.chat.completions.create(**ask("chat")).choices)
    assert chat[0] == chat[1]
    completion = both(lambda client: client.completions.create(model=MODEL, prompt="a prompt").choices)
    assert completion[0] == completion[1]
    embedding = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    vectors = both(lambda client: client.embeddings.create(**embedding).data)
    assert vectors[0] == vectors[1], "base64, the SDK's default, travels through a batch"
    response = both(lambda client: client.responses.create(model="gpt-5-mini", input="words").output_text)
    assert response[0] == response[1]
    assert rig.provider.billed("batch")["requests"] == 4
    assert rig.provider.billed("realtime")["requests"] == 0


def test_many_held_at_once(start, oracle):
    count = 200
    rig = start(settings=Settings(linger="1s"))
    expected = oracle.client()

    async def all_at_once():
        async with rig.daemon.async_client(max_retries=0) as client:
            create = client.chat.completions.create
            calls = [create(**ask(f"question {n}"), extra_headers=DAY) for n in range(count)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(all_at_once())
    for n, answer in enumerate(answers):
        assert answer.choices == expected.chat.completions.create(**ask(f"question {n}")).choices
    billed = rig.provider.billed("batch")
    assert billed["requests"] == count
    assert billed["cost"] * 2 == billed["realtime_cost"]
    assert rig.provider.ran_twice() == []
    assert rig.provider.calls("create_batch") < count / 4, "they travel together"


def test_a_streamed_call_is_not_deferred(rig):
    """The bundled router buys real time for it, since a stream cannot be kept for later."""
    chunks = list(rig.client().chat.completions.create(**ask("stream"), stream=True, extra_headers=DAY))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert rig.provider.billed("realtime")["requests"] == 1


def test_each_pays_the_price_of_its_way(rig):
    client = rig.client()
    for n in range(3):
        client.chat.completions.create(**ask(f"now {n}"))
        client.chat.completions.create(**ask(f"later {n}"), extra_headers=DAY)
    realtime, batch = rig.provider.billed("realtime"), rig.provider.billed("batch")
    assert (realtime["requests"], batch["requests"]) == (3, 3)
    assert realtime["cost"] == realtime["realtime_cost"]
    assert batch["cost"] * 2 == batch["realtime_cost"]
