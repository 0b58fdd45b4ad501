"""A real engine, with a tiny random model: calls at once, deferred work in its idle time, jobs, and its death."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from rig import Daemon, Settings, eventually
from rig.engine import SLOTS, TINY, Engine
from rig.programs import clean_environment, program_path

# Sentences of several lengths, so that mixed-up answers would show.
TEXTS = [f"text {n} " + "and so on " * (n % 7) for n in range(60)]

LATER = {"x-offpeak-sla": "24h"}

# Where nothing listens: no other backend helps out.
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


@pytest.fixture
def daemon(engine: Engine, start_daemon: Callable[..., Daemon]) -> Daemon:
    settings = f"""
[plugins.providers.vllm]
time_limit = "5s"

[backends.gpu]
provider = "vllm"
base_url = "{engine.url}"
models = ["{TINY}"]

[backends.gpu.engine]
look_every = "50ms"

[backends.gpu.config]
engine = "llamacpp"
max_running = {SLOTS}
"""
    return start_daemon(NOBODY, Settings(more=settings))


def ask(client: OpenAI, n: int, tokens: int = 8, **options: Any) -> Any:
    messages = [{"role": "user", "content": f"question {n}"}]
    return client.chat.completions.create(
        model=TINY, messages=messages, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}, **options
    )


def submit(client: OpenAI, endpoint: str, bodies: list[dict[str, Any]]) -> Any:
    lines = [
        json.dumps({"custom_id": f"n-{n}", "method": "POST", "url": endpoint, "body": body})
        for n, body in enumerate(bodies)
    ]
    file = client.files.create(file=("work.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def finished(client: OpenAI, job: Any) -> Any:
    def look() -> Any:
        seen = client.batches.retrieve(job.id)
        return seen if seen.status in ("completed", "failed", "expired", "cancelled") else None

    return eventually(look, f"{job.id} ends")


def lines(client: OpenAI, file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    parsed = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    by_id = {line["custom_id"]: line["response"] for line in parsed}
    assert len(by_id) == len(parsed), "an id stands there twice"
    return by_id


def test_calls_in_real_time_are_the_engines_own(engine: Engine, daemon: Daemon) -> None:
    client = daemon.client()
    whole = ask(client, 1)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content == ask(engine.client, 1).choices[0].message.content
    stream = ask(client, 1, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 8
    ours = client.embeddings.create(model=TINY, input=TEXTS[:3], encoding_format="float")
    theirs = engine.client.embeddings.create(model=TINY, input=TEXTS[:3], encoding_format="float")
    assert [one.embedding for one in ours.data] == [pytest.approx(one.embedding, abs=1e-2) for one in theirs.data]


def test_deferred_calls_run_in_its_idle_time_and_its_metrics_are_read(engine: Engine, daemon: Daemon) -> None:
    client = daemon.client()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: ask(client, n, 100, extra_headers=LATER), range(40)))
    assert [answer.usage.completion_tokens for answer in answers] == [100] * 40
    same = [ask(engine.client, n, 100).usage.prompt_tokens for n in (0, 39)]
    assert [answers[n].usage.prompt_tokens for n in (0, 39)] == same
    assert daemon.metric("offpeak_engine_ready") == 1
    assert engine.number("tokens_predicted_total") >= 4000
    # At each look: tokens since the one before, and what ran.
    eventually(lambda: daemon.metric("offpeak_engine_peak_tokens_per_second") > 0, "its speed is known")
    assert 0 < daemon.metric("offpeak_engine_busy_seconds_total") <= daemon.metric("offpeak_engine_looked_seconds_total")
    assert daemon.metric("offpeak_engine_batch_size_sum") >= daemon.metric("offpeak_engine_batch_size_count") > 0
    assert 0 <= daemon.metric("offpeak_engine_batch_efficiency") <= 1


def test_embeddings_are_merged_and_a_bad_one_fails_alone(engine: Engine, daemon: Daemon) -> None:
    client = daemon.client()
    bodies = [{"model": TINY, "input": text, "encoding_format": "float"} for text in TEXTS]
    bad = 23
    # The engine refuses a whole call for it.
    bodies[bad]["input"] = ""
    job = finished(client, submit(client, "/v1/embeddings", bodies))
    assert (job.status, job.request_counts.completed, job.request_counts.failed) == ("completed", 59, 1)
    good, refused = lines(client, job.output_file_id), lines(client, job.error_file_id)
    assert list(refused) == [f"n-{bad}"]
    assert refused[f"n-{bad}"]["status_code"] == 400
    assert "cannot be empty" in json.dumps(refused[f"n-{bad}"]["body"])
    theirs = engine.client.embeddings.create(
        model=TINY, input=[text for n, text in enumerate(TEXTS) if n != bad], encoding_format="float"
    )
    expected = iter(theirs.data)
    counted = 0
    for n in range(len(TEXTS)):
        if n == bad:
            continue
        body = good[f"n-{n}"]["body"]
        assert [one["index"] for one in body["data"]] == [0]
        assert body["data"][0]["embedding"] == pytest.approx(next(expected).embedding, abs=1e-2), n
        counted += body["usage"]["prompt_tokens"]
    assert counted == theirs.usage.prompt_tokens, "their shares are the whole"
    calls, requests = (daemon.metric(f"offpeak_engine_merged_requests_{of}") for of in ("count", "sum"))
    assert calls >= 1 and requests >= 2 * calls


def test_a_job_runs_on_it(engine: Engine, daemon: Daemon) -> None:
    client = daemon.client()
    bodies = [
        {"model": TINY, "messages": [{"role": "user", "content": f"question {n}"}], "max_tokens": 4, "ignore_eos": True}
        for n in range(200)
    ]
    job = finished(client, submit(client, "/v1/chat/completions", bodies))
    assert (job.status, job.request_counts.completed) == ("completed", 200)
    answers = lines(client, job.output_file_id)
    assert sorted(answers) == sorted(f"n-{n}" for n in range(200))
    assert all(answer["body"]["usage"]["completion_tokens"] == 4 for answer in answers.values())
    assert engine.number("tokens_predicted_total") == 800, "each ran once"


def test_it_dies_under_load_and_nothing_is_lost(engine: Engine, daemon: Daemon) -> None:
    client, bold = daemon.client(), daemon.client(max_retries=0)
    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(ask, client, n, 200, extra_headers=LATER) for n in range(40)]
        eventually(lambda: engine.number("requests_processing") >= 2, "some run")
        engine.kill()
        eventually(lambda: daemon.metric("offpeak_engine_ready") == 0, "its death is noticed")
        # Whoever wants an answer now is told.
        with pytest.raises(openai.InternalServerError) as refused:
            ask(bold, 0)
        assert refused.value.status_code in (502, 503)
        engine.start()
        done = [answer.result() for answer in answers]
    assert [answer.usage.completion_tokens for answer in done] == [200] * 40
    assert ask(bold, 0).usage.completion_tokens == 8


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_the_readmes_walk_through(engine: Engine, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    script = next(block for block in blocks if "engine.toml" in block)
    data, admin = free_port(), free_port()
    for shown, here in (
        ("http://127.0.0.1:8000", engine.url),
        ("http://127.0.0.1:8400", f"http://127.0.0.1:{data}"),
        ("http://127.0.0.1:8401", f"http://127.0.0.1:{admin}"),
    ):
        assert shown in script
        script = script.replace(shown, here)
    environment = clean_environment(
        OFFPEAK_SERVER__LISTEN=f"127.0.0.1:{data}",
        OFFPEAK_SERVER__ADMIN=f"127.0.0.1:{admin}",
        OFFPEAK_PLUGINS__ROUTER__TIME_LIMIT="5s",
        PATH=f"{program_path('OFFPEAK_BIN').parent}:{os.environ['PATH']}",
    )
    # It goes on in the background; whatever fails before, it is ended.
    script = f"trap 'kill $!; wait' EXIT\n{script}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count('"finish_reason":"') == 2, done
    assert re.search(r"(?m)^offpeak_engine_ready\{backend=\"gpu\"\} 1$", done.stdout), done
