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


def test_a_background_response_can_be_streamed(rig, oracle):
    client = rig.client()
    request = {"model": "gpt-5-mini", "input": "no hurry"}
    stream = client.responses.create(**request, background=True, stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1].type == "response.completed"
    expected = oracle.client().responses.create(**request).output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    whole = client.responses.retrieve(events[0].response.id)
    assert events[-1].response.to_dict() == whole.to_dict()
    assert rig.provider.billed("batch")["requests"] == 1

    # Who lost the stream takes it up again; the SDK's own helper puts the pieces together.
    rest = list(client.responses.retrieve(whole.id, stream=True, starting_after=3))
    assert [event.to_dict() for event in rest] == [event.to_dict() for event in events[4:]]
    with client.responses.stream(response_id=whole.id) as helper:
        assert helper.get_final_response().output_text == expected


def test_models_are_those_that_the_tenant_may_use(rig):
    names = {model.id for model in rig.client().models.list()}
    assert {MODEL, "gpt-5-mini", "text-embedding-3-small"} <= names
    few = {model.id for model in rig.client("queue").models.list()}
    assert few == {name for name in names if name.startswith("gpt-4o")}
    assert rig.client().models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        rig.client("queue").models.retrieve("gpt-5-mini")
