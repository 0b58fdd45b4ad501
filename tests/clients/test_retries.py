"""A call that is repeated, by the application or by the SDK itself, is the same work and is paid once."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from rig import MODEL, Settings, eventually

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def with_key(key):
    return DAY | {"idempotency-key": key}


def paid_once(rig):
    assert rig.provider.billed("batch")["requests"] == 1
    assert rig.provider.billed("realtime")["requests"] == 0
    return True


def test_the_same_key_is_the_same_work(rig):
    rig.provider.next_batch_takes(1.0)
    create = rig.client().chat.completions.with_raw_response.create
    with ThreadPoolExecutor() as pool:
        held = [pool.submit(create, **ask("one"), extra_headers=with_key("k-1")) for _ in range(5)]
        answers = [call.result() for call in held]
    answers.append(create(**ask("one"), extra_headers=with_key("k-1")))
    assert len({answer.headers["x-offpeak-request-id"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert paid_once(rig)


def test_another_body_under_the_key_is_a_conflict(rig):
    client = rig.client()
    client.chat.completions.create(**ask("one"), extra_headers=with_key("k-1"))
    with pytest.raises(openai.ConflictError) as raised:
        client.chat.completions.create(**ask("two"), extra_headers=with_key("k-1"))
    assert raised.value.code == "idempotency_key_reused"
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert paid_once(rig)


def test_a_key_belongs_to_its_tenant(rig):
    mine = rig.client().chat.completions.create(**ask("one"), extra_headers=with_key("k-1"))
    theirs = rig.client("mail").chat.completions.create(**ask("two"), extra_headers=with_key("k-1"))
    assert mine.choices != theirs.choices
    assert rig.provider.billed("batch")["requests"] == 2


def test_equal_bodies_without_a_key_are_two_calls(start):
    rig = start(settings=Settings(linger="500ms"))
    create = rig.client().chat.completions.with_raw_response.create
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(create, **ask("the same"), extra_headers=DAY) for _ in range(2)]
        ids = {call.result().headers["x-offpeak-request-id"] for call in calls}
    assert len(ids) == 2
    assert rig.provider.billed("batch")["requests"] == 2


def test_the_sdks_own_retry_attaches(rig, oracle):
    rig.provider.next_batch_takes(4.0)
    impatient = rig.client(timeout=1.0, max_retries=8)
    answer = impatient.chat.completions.create(**ask("slow"), extra_headers=DAY)
    assert answer.choices == oracle.client().chat.completions.create(**ask("slow")).choices
    assert rig.daemon.metric("offpeak_deferred_attached_total") >= 2
    assert rig.daemon.metric("offpeak_deferred_accepted_total") == 1
    assert paid_once(rig)


def test_the_sdks_own_retry_finds_the_answer_that_came_meanwhile(rig):
    """The SDK pauses for half a second before it tries again; the answer may come just then."""
    rig.provider.next_batch_takes(0.6)
    client = rig.client(timeout=0.6, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**ask("just missed"), extra_headers=DAY)
    eventually(lambda: rig.daemon.metric("offpeak_deferred_finished_total"), "the answer that nobody waits for")
    again = DAY | {"x-stainless-retry-count": "1"}
    answer = rig.client().chat.completions.create(**ask("just missed"), extra_headers=again)
    assert answer.choices[0].message.content
    assert paid_once(rig)


def test_a_final_failure_is_not_tried_again_by_the_sdk(rig):
    """offpeak has tried as often as it may; the SDK's own retries would begin all over again."""
    rig.provider.plan(set={"items": [{"fault": {"kind": "status", "status": 500}}]})
    with pytest.raises(openai.InternalServerError) as raised:
        rig.client().chat.completions.create(**ask("hopeless"), extra_headers=DAY)
    assert raised.value.response.headers["x-offpeak-attempts"] == "4"
    assert rig.daemon.metric("offpeak_deferred_accepted_total") == 1
