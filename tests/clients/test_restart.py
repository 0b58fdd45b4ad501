"""What was acknowledged survives a crash of the daemon, and is not paid twice."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import httpx2
import openai
import pytest

from rig import KEYS, MODEL, Settings, eventually

DAY = {"x-offpeak-sla": "24h"}
COUNT = 20


def ask(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def take_tickets(client):
    create = client.chat.completions.with_raw_response.create
    headers = DAY | {"prefer": "respond-async"}
    return [create(**ask(f"question {n}"), extra_headers=headers).headers["location"] for n in range(COUNT)]


def redeem(daemon, location):
    def look():
        response = httpx2.get(daemon.url + location, headers={"authorization": f"Bearer {KEYS['search']}"})
        return response if response.status_code != 202 else None

    return eventually(look, f"the answer at {location}")


def all_answered_once(rig, oracle, tickets):
    for n, location in enumerate(tickets):
        response = redeem(rig.daemon, location)
        assert response.status_code == 200, response.text
        answer = openai.types.chat.ChatCompletion.model_validate_json(response.content)
        assert answer.choices == oracle.client().chat.completions.create(**ask(f"question {n}")).choices
    assert rig.provider.billed("batch")["requests"] == COUNT
    assert rig.provider.ran_twice() == []
    # The ledger has each outcome once, whatever was killed when: to the last pico-dollar it is the bill.
    ledger = Decimal(rig.daemon.ask("/admin/v1/costs")["total"]["cost_usd"])
    assert ledger * 10**12 == rig.provider.bill()["total"]


def test_killed_while_requests_wait(start, oracle):
    rig = start(settings=Settings(linger="10m"))
    tickets = take_tickets(rig.client())
    rig.daemon.kill()
    rig.daemon.start()
    assert rig.daemon.waiting() == COUNT
    assert rig.provider.calls("upload_file") == 0
    rig.daemon.flush()
    all_answered_once(rig, oracle, tickets)


@pytest.mark.parametrize("step", ["upload_file", "create_batch", "get_batch"])
def test_killed_while_a_batch_is_under_way(start, oracle, step):
    rig = start(settings=Settings(linger="10m"))
    tickets = take_tickets(rig.client())
    # The answer to the very call comes late, so that the daemon dies while it waits for it.
    rig.provider.next(step, "slow", ms=1000)
    rig.daemon.flush()
    eventually(lambda: rig.provider.calls(step), f"a call of {step}")
    rig.daemon.kill()
    rig.daemon.start()
    all_answered_once(rig, oracle, tickets)
    assert rig.provider.calls("create_batch") == 1


def test_killed_again_and_again(start, oracle):
    rig = start(settings=Settings(linger="50ms"))
    rig.provider.plan(set={"http": [{"on": "any", "fault": {"kind": "slow", "ms": 50}}]})
    tickets = take_tickets(rig.client())
    for calls in range(1, 6):
        eventually(lambda: rig.provider.calls("get_batch") >= calls or all_done(rig, tickets), "progress")
        rig.daemon.kill()
        rig.daemon.start()
    all_answered_once(rig, oracle, tickets)


def all_done(rig, tickets):
    headers = {"authorization": f"Bearer {KEYS['search']}"}
    return all(httpx2.get(rig.daemon.url + ticket, headers=headers).status_code == 200 for ticket in tickets)


def test_a_held_call_is_taken_up_again(start, oracle):
    rig = start()
    rig.provider.next_batch_takes(2.0)
    headers = DAY | {"idempotency-key": "the-one"}
    with ThreadPoolExecutor() as pool:
        create = rig.client(max_retries=0).chat.completions.create
        held = pool.submit(create, **ask("held"), extra_headers=headers)
        eventually(lambda: rig.provider.calls("create_batch"), "the batch")
        rig.daemon.kill()
        with pytest.raises(openai.APIConnectionError):
            held.result()
    rig.daemon.start()
    answer = rig.client().chat.completions.create(**ask("held"), extra_headers=headers)
    assert answer.choices == oracle.client().chat.completions.create(**ask("held")).choices
    assert rig.provider.billed("batch")["requests"] == 1


def test_results_stay_when_they_were_there_before(start, oracle):
    rig = start()
    tickets = take_tickets(rig.client())
    before = [redeem(rig.daemon, ticket).content for ticket in tickets]
    rig.daemon.kill()
    rig.daemon.start()
    assert [redeem(rig.daemon, ticket).content for ticket in tickets] == before
    all_answered_once(rig, oracle, tickets)


def test_held_calls_are_told_when_the_daemon_stops(start):
    rig = start(settings=Settings(linger="10m"))
    with ThreadPoolExecutor() as pool:
        create = rig.client(max_retries=0).chat.completions.create
        held = pool.submit(create, **ask("held"), extra_headers=DAY)
        eventually(lambda: rig.daemon.metric("offpeak_held_calls") == 1, "the held call")
        assert rig.daemon.program.stop() == 0
        with pytest.raises(openai.InternalServerError) as raised:
            held.result()
    assert (raised.value.status_code, raised.value.code) == (503, "restarting")
