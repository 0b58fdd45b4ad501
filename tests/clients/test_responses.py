"""Background responses and the list of models, as OpenAI's SDK asks for them."""

import openai
import pytest

from rig import MODEL, Settings, eventually


def finished(client, response):
    def look():
        found = client.responses.retrieve(response.id)
        return found if found.status not in ("queued", "in_progress") else None

    return eventually(look, f"the end of {response.id}")


def test_a_background_response(rig, oracle):
    client = rig.client()
    request = {"model": "gpt-5-mini", "input": "no hurry"}
    response = client.responses.create(**request, background=True)
    assert response.id.startswith("resp_")
    assert response.status in ("queued", "in_progress")
    assert response.background is True
    response = finished(client, response)
    expected = oracle.client().responses.create(**request)
    assert (response.status, response.output_text) == ("completed", expected.output_text)
    assert response.usage == expected.usage
    billed = rig.provider.billed("batch")
    assert billed["requests"] == 1
    assert billed["cost"] * 2 == billed["realtime_cost"]

    [item] = client.responses.input_items.list(response.id)
    assert (item.type, item.role, item.content[0].text) == ("message", "user", "no hurry")

    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_it_can_be_cancelled_and_is_its_tenants_own(start):
    rig = start(settings=Settings(linger="10m"))
    response = rig.client().responses.create(model="gpt-5-mini", input="never mind", background=True)
    for call in (rig.client("mail").responses.retrieve, rig.client("mail").responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(response.id)
    assert rig.client().responses.cancel(response.id).status == "cancelled"
    assert rig.client().responses.retrieve(response.id).status == "cancelled"
    assert rig.provider.bill()["lines"] == []


def test_what_the_provider_refuses_is_failed(rig):
    client = rig.client()
    response = finished(client, client.responses.create(model="gpt-5-mini", input=[], background=True))
    assert response.status == "failed"
    assert response.error.message


def test_a_background_response_cannot_be_streamed(rig):
    with pytest.raises(openai.BadRequestError) as raised:
        rig.client().responses.create(model="gpt-5-mini", input="x", background=True, stream=True)
    assert raised.value.param == "stream"
    response = rig.client().responses.create(model="gpt-5-mini", input="x", background=True)
    with pytest.raises(openai.BadRequestError) as raised:
        rig.client().responses.retrieve(response.id, stream=True, starting_after=3)
    assert raised.value.param == "stream"


def test_models_are_those_that_the_tenant_may_use(rig):
    names = {model.id for model in rig.client().models.list()}
    assert {MODEL, "gpt-5-mini", "text-embedding-3-small"} <= names
    few = {model.id for model in rig.client("queue").models.list()}
    assert few == {name for name in names if name.startswith("gpt-4o")}
    assert rig.client().models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        rig.client("queue").models.retrieve("gpt-5-mini")
