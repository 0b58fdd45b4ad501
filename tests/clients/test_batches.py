"""The script that people write around OpenAI's batch API works as it is, with another base URL."""

import hashlib
import json
import socket
from decimal import Decimal

import openai
import pytest

from rig import KEYS, MODEL, eventually

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


def line(number, **body):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}]} | body
    return {"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body}


def upload(client, lines, **more):
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    return client.files.create(file=("requests.jsonl", content), purpose="batch", **more)


def submit(client, lines, window="24h", **more):
    file = upload(client, lines)
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window, **more)


def finished(client, job):
    def look():
        batch = client.batches.retrieve(job.id)
        return batch if batch.status in ENDED else None

    return eventually(look, f"the end of {job.id}")


def read(client, file_id):
    """The lines of a result by their custom_id."""
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "each once"
    return found


def test_the_classic_flow(rig, oracle, tmp_path):
    """Upload, create, poll, download, map by custom_id, and send only what failed again."""
    client = rig.client()
    lines = {f"item-{number}": line(number) for number in range(30)}
    # Three of them are malformed, which only the model's endpoint can tell.
    broken = ["item-3", "item-14", "item-29"]
    sent = [lines[name] | ({"body": lines[name]["body"] | {"messages": []}} if name in broken else {}) for name in lines]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in sent))

    with path.open("rb") as requests:
        file = client.files.create(file=requests, purpose="batch")
    assert (file.purpose, file.status, file.filename) == ("batch", "processed", "requests.jsonl")
    assert file.bytes == path.stat().st_size
    job = client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"project": "mine"}
    )
    assert job.status in ("validating", "in_progress")
    assert job.expires_at - job.created_at == 24 * 3600
    job = finished(client, job)
    assert job.status == "completed"
    assert (job.request_counts.total, job.request_counts.completed, job.request_counts.failed) == (30, 27, 3)
    assert job.metadata == {"project": "mine"}
    # What it cost, beside what it would have cost in real time; the SDK takes members that it does not know.
    cost = {name: Decimal(job.offpeak_cost[name]) for name in ("cost_usd", "realtime_cost_usd")}
    assert cost["cost_usd"] * 2 == cost["realtime_cost_usd"] > 0
    assert job.usage.total_tokens == job.usage.input_tokens + job.usage.output_tokens > 0

    answers, errors = read(client, job.output_file_id), read(client, job.error_file_id)
    assert set(answers) == set(lines) - set(broken)
    assert set(errors) == set(broken)
    assert {entry["response"]["status_code"] for entry in errors.values()} == {400}
    for name in ("item-0", "item-17"):
        body = answers[name]["response"]["body"]
        expected = oracle.client().chat.completions.create(**lines[name]["body"])
        assert body["choices"][0]["message"]["content"] == expected.choices[0].message.content

    again = finished(client, submit(client, [lines[name] for name in errors]))
    assert again.request_counts.completed == 3
    answers |= read(client, again.output_file_id)
    assert set(answers) == set(lines)

    billed = rig.provider.billed("batch")
    assert billed["requests"] == 30
    assert billed["cost"] * 2 == billed["realtime_cost"] > 0
    assert rig.provider.ran_twice() == []


def test_windows_are_slas(rig):
    job = submit(rig.client(), [line(1)], window="2h")
    assert job.completion_window == "2h"
    assert job.expires_at - job.created_at == 2 * 3600
    assert finished(rig.client(), job).status == "completed"
    with pytest.raises(openai.BadRequestError) as raised:
        submit(rig.client(), [line(1)], window="soon")
    assert raised.value.param == "completion_window"


def test_a_malformed_line_fails_the_job_and_nothing_is_run(rig):
    client = rig.client()
    file = client.files.create(file=("requests.jsonl", b'{"custom_id": "1"\n'), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    job = finished(client, job)
    assert job.status == "failed"
    assert [(error.line, error.code) for error in job.errors.data] == [(1, "invalid_json_line")]
    assert job.output_file_id is None
    assert rig.provider.calls("create_batch") == 0


def test_lists_go_page_by_page(rig):
    client = rig.client()
    jobs = [submit(client, [line(number)]).id for number in range(5)]
    assert [job.id for job in client.batches.list(limit=2)] == jobs[::-1], "the SDK asks for all pages"
    first = client.batches.list(limit=2)
    assert [job.id for job in first.data] == jobs[:-3:-1]
    assert first.has_more
    inputs = [file.id for file in client.files.list(purpose="batch", limit=3, order="asc")]
    assert len(inputs) == 5


def test_files_can_be_looked_at_and_removed(rig):
    client = rig.client()
    content = json.dumps(line(1)).encode()
    expiry = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.jsonl", content), purpose="batch", expires_after=expiry)
    assert file.expires_at - file.created_at == 3600
    assert client.files.retrieve(file.id).bytes == len(content)
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_file_that_comes_in_parts(rig, tmp_path):
    client = rig.client()
    content = "".join(f"{json.dumps(line(number))}\n" for number in range(40)).encode()
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    # As the SDK does it by itself, in parts so small that lines are cut.
    whole = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="batch", part_size=1000
    )
    assert (whole.status, whole.file.bytes, whole.file.purpose) == ("completed", len(content), "batch")
    job = client.batches.create(input_file_id=whole.file.id, endpoint=CHAT, completion_window="24h")
    job = finished(client, job)
    assert (job.status, job.request_counts.completed) == ("completed", 40)
    assert set(read(client, job.output_file_id)) == {f"item-{number}" for number in range(40)}

    # And step by step: the parts in any order, which the end puts right.
    about = {"filename": "requests.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    begun = client.uploads.create(bytes=len(content), **about)
    assert (begun.status, begun.file) == ("pending", None)
    back, front = content[1234:], content[:1234]
    parts = [client.uploads.parts.create(begun.id, data=data) for data in (back, front)]
    assert {part.upload_id for part in parts} == {begun.id}
    ids = [part.id for part in reversed(parts)]
    with pytest.raises(openai.BadRequestError) as raised:
        client.uploads.complete(begun.id, part_ids=ids, md5=hashlib.md5(b"another").hexdigest())
    assert raised.value.code == "checksum_mismatch"
    with pytest.raises(openai.NotFoundError):
        rig.client("mail").uploads.complete(begun.id, part_ids=ids)
    done = client.uploads.complete(begun.id, part_ids=ids, md5=hashlib.md5(content).hexdigest())
    assert client.files.content(done.file.id).content == content

    dropped = client.uploads.cancel(client.uploads.create(bytes=5, **about).id)
    assert dropped.status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(dropped.id, data=b"12345")
    assert rig.provider.billed("batch")["requests"] == 40


def broken_uploads():
    """Forms that end too early, or are not as they must be."""
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n'
    purpose = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield "in the file", file[:-4]
    yield "after the file", file
    yield "after the purpose", file + purpose
    yield "without a purpose", file + b"--b--\r\n"
    yield "with two files", purpose + file + file + b"--b--\r\n"


@pytest.mark.parametrize(("where", "form"), [*broken_uploads()], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("hangs_up", [True, False])
def test_an_upload_that_breaks_off_leaves_nothing(rig, tmp_path, where, form, hangs_up):
    host, port = rig.daemon.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEYS['search']}\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {len(form) + hangs_up}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + form)
        if not hangs_up:
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    files = tmp_path / "data" / "files"
    eventually(lambda: not files.exists() or list(files.iterdir()) == [], "nothing is left on the disk")
    assert list(rig.client().files.list()) == []


def test_a_cancelled_job(rig):
    rig.provider.next_batch_takes(20)
    client = rig.client()
    job = submit(client, [line(number) for number in range(4)])
    eventually(lambda: rig.provider.calls("create_batch"), "the batch has left")
    assert client.batches.cancel(job.id).status in ("cancelling", "cancelled")
    job = finished(client, job)
    assert job.status == "cancelled"
    errors = read(client, job.error_file_id)
    assert len(errors) == 4
    assert {entry["error"]["code"] for entry in errors.values()} == {"batch_cancelled"}


def test_to_other_tenants_nothing_of_it_exists(rig):
    client, other = rig.client(), rig.client("mail")
    job = finished(client, submit(client, [line(1)]))
    for look in (
        lambda: other.batches.retrieve(job.id),
        lambda: other.batches.cancel(job.id),
        lambda: other.files.retrieve(job.input_file_id),
        lambda: other.files.content(job.output_file_id),
        lambda: other.files.delete(job.input_file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            look()
    with pytest.raises(openai.BadRequestError):
        other.batches.create(input_file_id=job.input_file_id, endpoint=CHAT, completion_window="24h")
    assert list(other.batches.list()) == []
    assert list(other.files.list()) == []


def test_a_job_survives_the_daemons_end(rig):
    rig.provider.next_batch_takes(3)
    job = submit(rig.client(), [line(number) for number in range(50)])
    eventually(lambda: rig.provider.calls("create_batch"), "the batch has left")
    rig.daemon.kill()
    rig.daemon.start()
    job = finished(rig.client(), job)
    assert (job.status, job.request_counts.completed) == ("completed", 50)
    assert len(read(rig.client(), job.output_file_id)) == 50
    assert rig.provider.billed("batch")["requests"] == 50
    assert rig.provider.ran_twice() == []
