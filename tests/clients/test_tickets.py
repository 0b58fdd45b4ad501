"""A caller who asks for it gets a ticket, and the answer later."""

import re

import httpx2
import openai
import pytest

from rig import KEYS, MODEL, Settings, eventually

ASYNC = {"x-offpeak-sla": "24h", "prefer": "respond-async"}


def ask(prompt):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def take(client, prompt, **headers):
    return client.chat.completions.with_raw_response.create(**ask(prompt), extra_headers=ASYNC | headers)


def look(rig, ticket, tenant="search", method="GET"):
    url = rig.daemon.url + ticket.headers["location"]
    return httpx2.request(method, url, headers={"authorization": f"Bearer {KEYS[tenant]}"})


def redeem(rig, ticket):
    """The response, once it is there."""

    def looked():
        response = look(rig, ticket)
        return response if response.status_code != 202 else None

    return eventually(looked, "the ticket's answer")


def test_a_ticket_becomes_the_answer(rig, oracle):
    ticket = take(rig.client(), "with a ticket")
    assert ticket.http_response.status_code == 202
    assert re.fullmatch(r"/v1/deferred/dfr-[0-9a-f]+-[0-9a-f]+", ticket.headers["location"])
    assert int(ticket.headers["retry-after"]) > 0
    assert ticket.headers["preference-applied"] == "respond-async"
    body = ticket.http_response.json()
    assert (body["object"], body["status"]) == ("deferred", "in_progress")
    assert ticket.headers["location"].endswith(body["id"])

    answered = redeem(rig, ticket)
    assert answered.status_code == 200
    assert answered.headers["x-offpeak-mode"] == "deferred"
    answer = openai.types.chat.ChatCompletion.model_validate_json(answered.content)
    expected = oracle.client().chat.completions.create(**ask("with a ticket"))
    assert (answer.choices, answer.usage) == (expected.choices, expected.usage)
    assert look(rig, ticket).content == answered.content, "it can be fetched again"
    assert rig.provider.billed("batch")["requests"] == 1


def test_the_sdk_can_fetch_it(rig):
    ticket = take(rig.client(), "fetched by the SDK")
    redeem(rig, ticket)
    path = ticket.headers["location"].removeprefix("/v1")
    answer = rig.client().get(path, cast_to=openai.types.chat.ChatCompletion)
    assert answer.choices[0].message.content


def test_a_cancelled_request_never_leaves(start):
    rig = start(settings=Settings(linger="10m"))
    client = rig.client()
    cancelled, kept = take(client, "not this one"), take(client, "but this one")
    deleted = look(rig, cancelled, method="DELETE")
    assert deleted.status_code == 200
    assert deleted.json()["cancelled"] is True
    path = cancelled.headers["location"].removeprefix("/v1")
    with pytest.raises(openai.ConflictError) as raised:
        client.get(path, cast_to=object)
    assert raised.value.code == "cancelled"
    rig.daemon.flush()
    assert redeem(rig, kept).status_code == 200
    assert rig.provider.bill()["executions"]["distinct"] == 1
    late = look(rig, kept, method="DELETE")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "already_finished")


def test_to_other_tenants_it_does_not_exist(start):
    rig = start(settings=Settings(linger="10m"))
    ticket = take(rig.client(), "a secret")
    path = ticket.headers["location"].removeprefix("/v1")
    with pytest.raises(openai.NotFoundError) as raised:
        rig.client("mail").get(path, cast_to=object)
    assert raised.value.code == "deferred_not_found"
    assert look(rig, ticket, tenant="mail", method="DELETE").status_code == 404
    assert look(rig, ticket).status_code == 202, "and cannot be cancelled by them"


@pytest.mark.parametrize("id", ["dfr-9-9", "dfr-1-zz", "x", "dfr-", "dfr-99999999999-1"])
def test_a_wrong_id_is_a_404(rig, id):
    with pytest.raises(openai.NotFoundError) as raised:
        rig.client().get(f"/deferred/{id}", cast_to=object)
    assert raised.value.code == "deferred_not_found"


def test_a_tenant_may_have_tickets_by_default(rig):
    create = rig.client("queue").chat.completions.with_raw_response.create
    ticket = create(**ask("by default"), extra_headers={"x-offpeak-sla": "24h"})
    assert ticket.http_response.status_code == 202
    assert "preference-applied" not in ticket.headers
    assert create(**ask("now")).parse().choices[0].message.content, "what is not deferred is answered at once"
