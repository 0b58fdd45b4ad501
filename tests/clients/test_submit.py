"""`offpeak submit`, `jobs` and `cancel`: a file becomes one job, whatever happens in between, and answers become files.

The commands speak OpenAI's API, so that the simulated provider stands in for the daemon where a fault is wanted.
"""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from rig import KEYS, MODEL, PROVIDER_KEY, Door, Settings, eventually
from rig.programs import clean_environment, program_path

CHAT = "/v1/chat/completions"
ALL_GOOD, NOT_ALL, USAGE, UNAVAILABLE, CANNOT_WRITE, NOT_ALLOWED, INTERRUPTED = 0, 1, 64, 69, 74, 77, 130


def line(number, **body):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}]} | body
    return {"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body}


@pytest.fixture
def requests(tmp_path):
    """A file of twenty requests."""
    return write(tmp_path / "requests.jsonl", [line(number) for number in range(20)])


def write(path, lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(*arguments):
    return [str(program_path("OFFPEAK_BIN")), *map(str, arguments)]


def environment(url, key=PROVIDER_KEY):
    return clean_environment(OFFPEAK_URL=url, OFFPEAK_API_KEY=key)


def offpeak(provider, *arguments, code=ALL_GOOD, key=PROVIDER_KEY, url=None, **options):
    done = subprocess.run(
        command(*arguments),
        env=environment(url or provider.url, key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert key not in done.stdout + done.stderr
    return done


def submit(provider, *arguments, **options):
    return json.loads(offpeak(provider, "submit", *arguments, "--json", **options).stdout)


def answers(path):
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in read(path)}


def results(folder):
    """What a command leaves for its user."""
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".jsonl" and not path.name.startswith("."))


def litter(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith((".part", ".tmp"))]


# --- The way it goes ----------------------------------------------------------------------------------------------


def test_a_file_becomes_answers(start_provider, requests, tmp_path, oracle):
    provider = start_provider()
    report = submit(provider, requests, "--watch")
    assert (report["status"], report["endpoint"], report["window"]) == ("completed", CHAT, "24h")
    assert report["requests"] == {"total": 20, "completed": 20, "failed": 0}
    assert (report["output"], report["errors"], report["resumed"]) == (
        str(tmp_path / "requests.output.jsonl"),
        None,
        False,
    )
    assert report["usage"]["input_tokens"] > 0
    found = answers(report["output"])
    assert len(found) == 20
    expected = oracle.client().chat.completions.create(**line(7)["body"])
    assert found["item-7"] == expected.choices[0].message.content
    assert results(tmp_path) == ["requests.jsonl", "requests.output.jsonl"]
    assert litter(tmp_path) == []

    again = submit(provider, requests, "--watch")
    assert again == report | {"resumed": True}
    assert (provider.calls("create_batch"), provider.calls("upload_file")) == (1, 1)


def test_text_for_people(start_provider, requests, tmp_path):
    provider = start_provider()
    done = offpeak(provider, "submit", "requests.jsonl", "--watch", cwd=tmp_path)
    assert "completed, 20 of 20 answered" in done.stdout
    assert "requests.output.jsonl" in done.stdout
    assert done.stderr == "", "quiet where nobody looks"


def test_hand_in_now_and_fetch_later(start_provider, requests, tmp_path):
    provider = start_provider()
    provider.next_batch_takes(1.5)
    out = tmp_path / "answers" / "of today"
    first = submit(provider, requests, "--out", out)
    assert first["status"] in ("validating", "in_progress")
    assert first["output"] is None
    job = first["id"]
    listed = json.loads(offpeak(provider, "jobs", "--json").stdout)
    assert [entry["id"] for entry in listed] == [job]
    assert job in offpeak(provider, "jobs").stdout
    assert json.loads(offpeak(provider, "jobs", job, "--json").stdout)["endpoint"] == CHAT

    def fetched():
        report = submit(provider, requests, "--out", out)
        assert (report["id"], report["resumed"]) == (job, True)
        return report["output"]

    eventually(fetched, "the answers")
    assert len(answers(out / "requests.output.jsonl")) == 20
    assert provider.calls("create_batch") == 1


def watched(url, key, requests):
    """What somebody sees who watches a job at a wide terminal, line by line."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 300, 0, 0))
    running = subprocess.Popen(
        command("submit", requests, "--watch"),
        env=environment(url, key) | {"TERM": "xterm"},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end of a terminal has gone
        pass
    os.close(ours)
    assert running.wait(60) == ALL_GOOD
    return re.split(r"[\r\n]+", shown.decode(errors="replace"))


def test_progress_for_a_person_at_a_terminal(start, requests):
    """The job leaves in two batches, the second of which takes longer: in between there is a rate, and so a time left."""
    rig = start(settings=Settings(more="[lanes]\nmax_requests = 10"))
    hour = 3_600_000  # at the provider, where it passes in a second
    rig.provider.plan(next_batch=[[{"kind": "turnaround", "ms": ms}] for ms in (hour, 4 * hour)])
    shown = watched(rig.daemon.url, KEYS["search"], requests)
    assert any("Handing in 20 requests" in line for line in shown), shown
    line = next((line for line in shown if "10/20 " in line and "left" in line), None)
    assert line, shown
    assert re.search(r"\d+/(s|min), about [\dms ]+ left, due in 23h 59m, ", line), line
    cost, realtime = re.search(r"\$(0\.\d+) \(real time: \$(0\.\d+)\) so far", line).groups()
    assert Decimal(cost) * 2 == Decimal(realtime) > 0
    # Ten were answered by then, and these are what it says that they cost.
    bill = rig.provider.billed("batch")
    assert 0 < Decimal(cost) * 10**12 < bill["cost"]


# --- What fails -----------------------------------------------------------------------------------------------------


def test_some_items_fail(start_provider, tmp_path):
    provider = start_provider()
    lines = [line(number, **({"messages": []} if number % 5 == 0 else {})) for number in range(20)]
    requests = write(tmp_path / "requests.jsonl", lines)
    report = submit(provider, requests, "--watch", code=NOT_ALL)
    assert report["requests"] == {"total": 20, "completed": 16, "failed": 4}
    failed = {entry["custom_id"] for entry in read(report["errors"])}
    assert failed == {"item-0", "item-5", "item-10", "item-15"}
    assert len(answers(report["output"])) == 16
    assert [reason["requests"] for reason in report["reasons"]] == [4]
    people = offpeak(provider, "submit", requests, "--watch", code=NOT_ALL)
    assert "16 of 20 answered" in people.stdout
    assert "4 x 400: " in people.stdout

    # Only what failed goes again, as it stands in the file by now.
    write(requests, [line(number) for number in range(20)])
    again = submit(provider, requests, "--failed", "--watch")
    assert again["requests"] == {"total": 4, "completed": 4, "failed": 0}
    assert (again["input"], set(answers(again["output"]))) == (str(tmp_path / "requests.failed.jsonl"), failed)
    assert submit(provider, requests, "--failed", "--watch") == again | {"resumed": True}
    assert provider.calls("create_batch") == 2
    nothing = offpeak(provider, "submit", tmp_path / "requests.failed.jsonl", "--failed", code=USAGE)
    assert "requests.failed.errors.jsonl" in nothing.stderr


def test_a_refused_file_shows_its_lines_and_is_handed_in_anew_when_mended(start_provider, tmp_path):
    provider = start_provider()
    requests = write(tmp_path / "requests.jsonl", [line(1), line(1)])
    report = submit(provider, requests, "--watch", code=NOT_ALL)
    assert report["status"] == "failed"
    assert report["refused"][0]["line"] == 2
    people = offpeak(provider, "submit", requests, "--watch", code=NOT_ALL)
    assert "nothing of it was run" in people.stdout
    assert "line 2: " in people.stdout
    write(requests, [line(1), line(2)])
    assert submit(provider, requests, "--watch")["requests"]["completed"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("[1, 2]\n", "JSON array"),
        ('{"custom_id": "a"', "line 1"),
        ('{"custom_id": "a", "params": {}}\n', "Anthropic"),
        ('{"model": "m", "messages": []}\n', "bare request"),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_is_sent(start_provider, tmp_path, content, said):
    provider = start_provider()
    requests = tmp_path / "requests.jsonl"
    requests.write_text(content)
    assert said in offpeak(provider, "submit", requests, code=USAGE).stderr
    assert provider.calls("list_batches") == 0


def test_mistakes_on_the_command_line(start_provider, requests, tmp_path):
    provider = start_provider()
    assert "No such file" in offpeak(provider, "submit", tmp_path / "none.jsonl", code=USAGE).stderr
    assert "'soon' is not" in offpeak(provider, "submit", requests, "--window", "soon", code=USAGE).stderr
    assert "--url" in offpeak(provider, "submit", requests, url="nowhere", code=USAGE).stderr
    offpeak(provider, "submit", code=USAGE)
    assert "there is no job batch_9" in offpeak(provider, "cancel", "batch_9", code=USAGE).stderr
    assert "there is no job batch_9" in offpeak(provider, "jobs", "batch_9", code=USAGE).stderr
    assert "key" in offpeak(provider, "jobs", key="sk-of-nobody-at-all", code=NOT_ALLOWED).stderr
    (tmp_path / "file").write_text("")
    offpeak(provider, "submit", requests, "--out", tmp_path / "file", code=CANNOT_WRITE)
    assert provider.calls("create_batch") == 0


def test_nobody_there(start_provider, requests, tmp_path):
    provider = start_provider()
    away = offpeak(provider, "submit", requests, url="http://127.0.0.1:9", code=UNAVAILABLE)
    assert "offpeak serve" in away.stderr
    assert results(tmp_path) == ["requests.jsonl"]


def test_who_reads_no_further_has_read_enough(start_provider):
    provider = start_provider()
    for arguments in (("jobs",), ("jobs", "--json")):
        reads, writes = os.pipe()
        os.close(reads)
        done = subprocess.run(
            command(*arguments), env=environment(provider.url), stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60
        )
        os.close(writes)
        assert (done.returncode, done.stderr) == (ALL_GOOD, "")


def test_the_key_may_come_from_a_file(start_provider, requests, tmp_path):
    provider = start_provider()
    key = tmp_path / "key"
    key.write_text(f"{PROVIDER_KEY}\n")
    submit(provider, requests, "--watch", "--api-key-file", key, key="sk-of-nobody-at-all")


def test_results_of_others_are_not_written_over(start_provider, requests, tmp_path):
    provider = start_provider()
    (tmp_path / "requests.output.jsonl").write_text("mine")
    assert "--overwrite" in offpeak(provider, "submit", requests, code=USAGE).stderr
    assert (tmp_path / "requests.output.jsonl").read_text() == "mine"
    assert provider.calls("upload_file") == 0
    submit(provider, requests, "--watch", "--overwrite")
    assert len(answers(tmp_path / "requests.output.jsonl")) == 20


# --- One job, whatever happens ----------------------------------------------------------------------------------------


def is_one_job(provider, report):
    assert report["requests"] == {"total": 20, "completed": 20, "failed": 0}
    assert len(answers(report["output"])) == 20
    assert provider.billed("batch")["requests"] == 20
    assert provider.ran_twice() == []
    return True


@pytest.mark.parametrize("endpoint", ["upload_file", "create_batch", "get_batch", "list_batches", "file_content"])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_before_effect"},
        {"kind": "drop_response_after_effect"},
        {"kind": "cut_body"},
        {"kind": "status", "status": 503, "retry_after_ms": 10},
        {"kind": "status_after_effect", "status": 500},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_lost_connection(start_provider, requests, tmp_path, endpoint, fault):
    provider = start_provider()
    provider.plan(next=[{"endpoint": endpoint, "fault": fault}])
    assert is_one_job(provider, submit(provider, requests, "--watch"))
    assert litter(tmp_path) == []


def test_ctrl_c_leaves_the_job_running_and_the_command_goes_on(start_provider, requests):
    provider = start_provider()
    provider.next_batch_takes(3)
    running = subprocess.Popen(
        command("submit", requests, "--watch", "--json"),
        env=environment(provider.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: provider.calls("get_batch") >= 2, "it watches")
    running.send_signal(signal.SIGINT)
    said, warned = running.communicate(timeout=60)
    assert running.returncode == INTERRUPTED
    assert said == ""
    assert "the same command" in warned
    report = submit(provider, requests, "--watch")
    assert report["resumed"] is True
    assert is_one_job(provider, report)


@pytest.mark.parametrize("at", ["upload_file", "create_batch", "get_batch", "file_content"])
def test_killed_at_any_step(start_provider, requests, at):
    provider = start_provider()
    provider.plan(next=[{"endpoint": at, "fault": {"kind": "slow", "ms": 60_000}}])
    running = subprocess.Popen(command("submit", requests, "--watch"), env=environment(provider.url))
    eventually(lambda: provider.calls(at), f"the call of {at}")
    running.kill()
    running.wait()
    assert is_one_job(provider, submit(provider, requests, "--watch"))


def test_two_commands_at_once_make_one_job(start_provider, requests):
    provider = start_provider()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(submit, provider, requests, "--watch") for _ in range(4)]
        reports = [command.result() for command in running]
    assert len({report["id"] for report in reports}) == 1
    assert provider.calls("create_batch") == 1
    assert is_one_job(provider, reports[0])


def test_what_is_remembered_may_be_lost(start_provider, requests, tmp_path):
    provider = start_provider()
    first = submit(provider, requests, "--watch")
    elsewhere = submit(provider, requests, "--watch", "--out", tmp_path / "elsewhere")
    assert (elsewhere["id"], elsewhere["resumed"]) == (first["id"], True)
    assert provider.calls("create_batch") == 1


def test_results_that_were_moved_away_are_fetched_again(start_provider, requests, tmp_path):
    provider = start_provider()
    first = submit(provider, requests, "--watch")
    (tmp_path / "requests.output.jsonl").unlink()
    again = submit(provider, requests)
    assert again["id"] == first["id"]
    assert len(answers(tmp_path / "requests.output.jsonl")) == 20


def test_again_and_another_content_are_other_jobs(start_provider, requests, tmp_path):
    provider = start_provider()
    first = submit(provider, requests, "--watch")
    anew = submit(provider, requests, "--watch", "--again", "--overwrite")
    assert anew["id"] != first["id"]
    assert submit(provider, requests, "--watch")["id"] == anew["id"]
    write(requests, [line(99)])
    other = submit(provider, requests, "--watch", "--overwrite")
    assert other["requests"]["total"] == 1
    assert provider.calls("create_batch") == 3


def test_a_job_of_somebody_elses_key(start_provider, requests):
    provider = start_provider("--key", "sk-of-another")
    job = submit(provider, requests)["id"]
    # The simulator does not part its keys; a job that is gone looks the same.
    for path in requests.parent.glob(".offpeak-*.json"):
        path.write_text(path.read_text().replace(job, "batch_gone"))
    assert "--again" in offpeak(provider, "submit", requests, code=USAGE).stderr
    assert provider.calls("create_batch") == 1


def test_cancel(start_provider, requests):
    provider = start_provider()
    provider.next_batch_takes(20)
    job = submit(provider, requests)["id"]
    assert f"{job}: " in offpeak(provider, "cancel", job).stdout
    report = submit(provider, requests, "--watch", code=NOT_ALL)
    assert (report["id"], report["status"]) == (job, "cancelled")


def test_a_window_that_ends(start_provider, requests):
    provider = start_provider()
    provider.plan(next_batch=[[{"kind": "stall"}]])
    submit(provider, requests)
    provider.advance(hours=25)
    report = submit(provider, requests, "--watch", code=NOT_ALL)
    assert report["status"] == "expired"
    assert report["requests"] == {"total": 20, "completed": 10, "failed": 10}
    assert {entry["error"]["code"] for entry in read(report["errors"])} == {"batch_expired"}


def test_a_download_that_looks_whole_and_is_not(start_provider, requests):
    provider = start_provider()
    provider.next("file_content", "truncate_body")
    assert is_one_job(provider, submit(provider, requests, "--watch"))

    always = [{"on": "file_content", "probability": 1.0, "fault": {"kind": "truncate_body"}}]
    provider.plan(set={"http": always})
    (requests.parent / "requests.output.jsonl").unlink()
    assert "the job counts 20" in offpeak(provider, "submit", requests, code=UNAVAILABLE).stderr
    provider.plan(set={})
    assert is_one_job(provider, submit(provider, requests))


# --- The daemon itself ----------------------------------------------------------------------------------------------------


@pytest.fixture
def door(rig):
    """In front of the daemon, which may be ended and started again."""
    door = Door(rig.daemon.url.removeprefix("http://"))
    yield door
    door.close()


def test_through_the_daemon(rig, tmp_path):
    lines = [line(number, **({"messages": []} if number == 3 else {})) for number in range(20)]
    requests = write(tmp_path / "requests.jsonl", lines)
    ask = {"url": rig.daemon.url, "key": KEYS["search"]}
    report = submit(rig.provider, requests, "--watch", "--window", "2h", code=NOT_ALL, **ask)
    assert report["requests"] == {"total": 20, "completed": 19, "failed": 1}
    assert report["expires_at"] - report["created_at"] == 2 * 3600
    assert len(answers(report["output"])) == 19
    assert [entry["custom_id"] for entry in read(report["errors"])] == ["item-3"]
    billed = rig.provider.billed("batch")
    assert billed["requests"] == 19
    assert billed["cost"] * 2 == billed["realtime_cost"] > 0
    cost = {name: Decimal(report["cost"][name]) for name in ("cost_usd", "realtime_cost_usd")}
    assert cost["cost_usd"] * 2 == cost["realtime_cost_usd"] > 0
    assert report["cost"]["unpriced"] == 0
    listed = offpeak(rig.provider, "jobs", **ask).stdout
    assert report["id"] in listed and f"${report['cost']['cost_usd']}" in listed
    [shown] = json.loads(offpeak(rig.provider, "jobs", "--json", **ask).stdout)
    assert shown["offpeak_cost"] == report["cost"]
    others = {"url": rig.daemon.url, "key": KEYS["mail"]}
    assert "No jobs" in offpeak(rig.provider, "jobs", **others).stdout
    offpeak(rig.provider, "jobs", report["id"], code=USAGE, **others)
    offpeak(rig.provider, "cancel", report["id"], code=USAGE, **others)


def test_the_daemon_is_killed_while_a_job_is_watched(rig, requests, door):
    rig.provider.next_batch_takes(3)
    running = subprocess.Popen(
        command("submit", requests, "--watch", "--json"),
        env=environment(door.url, KEYS["search"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: rig.provider.calls("create_batch"), "the batch has left")
    rig.daemon.kill()
    rig.daemon.start()
    door.target = rig.daemon.url.removeprefix("http://")
    said, warned = running.communicate(timeout=120)
    assert running.returncode == ALL_GOOD, warned
    assert is_one_job(rig.provider, json.loads(said))


@pytest.mark.parametrize("after", [0, 300, 900, 2500])
def test_a_connection_that_breaks_in_the_middle_of_an_upload(rig, requests, door, after):
    door.slam_after = after
    report = submit(rig.provider, requests, "--watch", url=door.url, key=KEYS["search"])
    assert is_one_job(rig.provider, report)
