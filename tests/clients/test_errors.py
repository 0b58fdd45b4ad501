"""What goes wrong arrives as the SDK's own exceptions: the provider's errors as they are, offpeak's in their form."""

import httpx2
import openai
import pytest

from rig import KEYS, MODEL

DAY = {"x-offpeak-sla": "24h"}


def ask(prompt="hello"):
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}


def post(rig, content, path="/v1/chat/completions", **headers):
    headers = {"authorization": f"Bearer {KEYS['search']}", "content-type": "application/json"} | headers
    return httpx2.post(rig.daemon.url + path, content=content, headers=headers)


def nothing_was_stored(rig):
    return rig.daemon.metric("offpeak_deferred_accepted_total") == 0 and rig.daemon.waiting() == 0


# --- The provider's errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (403, openai.PermissionDeniedError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_errors_of_the_provider_pass_untouched(rig, oracle, status, kind):
    raised = {}
    for name, provider, client in [
        ("through", rig.provider, rig.client(max_retries=0)),
        ("straight", oracle, oracle.client().with_options(max_retries=0)),
    ]:
        provider.next("chat_completions", "status", status=status, retry_after_ms=1500)
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**ask())
        raised[name] = caught.value
    through, straight = raised["through"].response, raised["straight"].response
    assert through.status_code == straight.status_code == status
    assert through.content == straight.content
    assert raised["through"].body == raised["straight"].body
    for header in ("retry-after", "retry-after-ms", "content-type"):
        assert through.headers.get(header) == straight.headers.get(header)
    assert "openai-organization" not in through.headers, "the provider's account is the operator's own affair"
    assert through.headers["x-offpeak-mode"] == "realtime"


def test_a_refusal_of_the_provider_passes_untouched(rig, oracle):
    bodies = []
    for client in (rig.client(), oracle.client()):
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model=MODEL, messages=[])
        bodies.append(raised.value.response.content)
    assert bodies[0] == bodies[1]


def test_the_sdk_retries_what_passes(rig):
    rig.provider.next("chat_completions", "status", status=503)
    assert rig.client().chat.completions.create(**ask()).choices[0].message.content
    assert rig.provider.calls("chat_completions") == 2


def test_a_refusal_comes_back_from_a_batch(rig, oracle):
    with pytest.raises(openai.BadRequestError) as deferred:
        rig.client().chat.completions.create(model=MODEL, messages=[], extra_headers=DAY)
    with pytest.raises(openai.BadRequestError) as straight:
        oracle.client().chat.completions.create(model=MODEL, messages=[])
    assert deferred.value.body == straight.value.body
    assert deferred.value.response.headers["x-offpeak-attempts"] == "1", "the same request would fail again"
    assert rig.provider.bill()["lines"] == []


def test_an_unreachable_provider(start_daemon):
    daemon = start_daemon("http://127.0.0.1:9")
    with pytest.raises(openai.InternalServerError) as raised:
        daemon.client(max_retries=0).chat.completions.create(**ask())
    assert raised.value.status_code == 502
    assert raised.value.code == "backend_unreachable"


def test_a_connection_that_breaks_before_the_answer(rig):
    rig.provider.next("chat_completions", "drop_response_after_effect")
    with pytest.raises(openai.InternalServerError) as raised:
        rig.client().chat.completions.create(**ask())
    assert (raised.value.status_code, raised.value.code) == (502, "backend_broke_off")
    assert rig.provider.calls("chat_completions") == 1, "it has run: the SDK is told not to send it again"


# --- offpeak's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sk-of-nobody", "sk-of-the-provider", "sk-of-search2"])
def test_unknown_keys(rig, key):
    with pytest.raises(openai.AuthenticationError) as raised:
        rig.client().with_options(api_key=key).chat.completions.create(**ask())
    assert raised.value.status_code == 401
    assert key not in raised.value.response.text
    assert rig.provider.calls("chat_completions") == 0


def test_no_key(rig):
    response = httpx2.post(f"{rig.daemon.url}/v1/chat/completions", json=ask())
    assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_api_key")


def test_an_unknown_model(rig):
    with pytest.raises(openai.NotFoundError) as raised:
        rig.client().chat.completions.create(model="of-elsewhere", messages=[])
    error = raised.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert "of-elsewhere" in error.message


def test_a_model_that_the_tenant_may_not_use(rig):
    with pytest.raises(openai.PermissionDeniedError) as raised:
        rig.client("queue").chat.completions.create(model="gpt-5-mini", messages=[])
    assert raised.value.code == "model_not_allowed"


def test_an_unknown_endpoint(rig):
    with pytest.raises(openai.NotFoundError) as raised:
        rig.client().fine_tuning.jobs.create(model=MODEL, training_file="file-1")
    assert raised.value.code == "unknown_endpoint"
    assert "/v1/fine_tuning/jobs" in raised.value.message


@pytest.mark.parametrize("tag", ["soon", "0s", "-1h", "366d", "", "1e9h"])
@pytest.mark.parametrize("place", ["header", "metadata"])
def test_bad_tags(rig, tag, place):
    tagged = {"extra_headers": {"x-offpeak-sla": tag}} if place == "header" else {"metadata": {"offpeak_sla": tag}}
    with pytest.raises(openai.BadRequestError) as raised:
        rig.client().chat.completions.create(**ask(), **tagged)
    assert raised.value.code == "invalid_sla"
    assert raised.value.param == ("x-offpeak-sla" if place == "header" else "metadata.offpeak_sla")
    assert nothing_was_stored(rig)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b'{"model": "gpt-4o-mini"} {}', b"\xff\xfe", b'{"model": "gpt-\xff"}']
)
def test_malformed_json(rig, body):
    for headers in ({}, DAY):
        response = post(rig, body, **headers)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")
    assert nothing_was_stored(rig)
    assert rig.provider.calls("chat_completions") == 0


def test_no_model(rig):
    response = post(rig, b'{"messages": []}')
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize("headers", [{}, DAY], ids=["real time", "deferred"])
def test_a_body_that_is_too_large(rig, headers):
    with pytest.raises(openai.APIStatusError) as raised:
        rig.client().chat.completions.create(**ask("x" * 2_000_000), extra_headers=headers)
    assert raised.value.status_code == 413
    assert raised.value.code == "request_too_large"
    assert nothing_was_stored(rig)


def test_a_body_of_unknown_length_that_is_too_large(rig):
    response = post(rig, (b"x" * 65_536 for _ in range(40)))
    assert response.status_code == 413


def test_wrong_methods(rig):
    headers = {"authorization": f"Bearer {KEYS['search']}"}
    response = httpx2.get(f"{rig.daemon.url}/v1/chat/completions", headers=headers)
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_the_daemon_goes_on_after_all_this(rig):
    for body in (b"", b"{", b"x" * 2_000_000):
        post(rig, body)
    assert rig.client().chat.completions.create(**ask()).choices[0].message.content
