"""A client that hangs up ends the call at the provider, who would otherwise go on at the client's cost."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from rig import MODEL

LIMIT = 30.0


class Endless(ThreadingHTTPServer):
    """A provider that never comes to an end, and notices when nobody listens any more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EndlessHandler)
        self.asked, self.left = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class EndlessHandler(BaseHTTPRequestHandler):
    """Streams without end, or never answers."""

    server: Endless
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.set()
        try:
            if request.get("stream"):
                self.talk()
            self.connection.settimeout(LIMIT)
            # Nothing more is sent by offpeak: it is either silent or gone.
            if self.connection.recv(1) == b"":
                self.server.left.set()
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()
        self.close_connection = True

    def talk(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        delta = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [delta]}
        event = f"data: {json.dumps(chunk)}\n\n".encode()
        # Bounded, should it never be noticed.
        for _ in range(3000):
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            threading.Event().wait(0.01)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


@pytest.fixture
def endless() -> Iterator[Endless]:
    server = Endless()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask():
    return {"model": MODEL, "messages": [{"role": "user", "content": "for ever"}]}


def test_a_stream_that_is_closed(start_daemon, endless):
    client = start_daemon(endless.url).client()
    stream = client.chat.completions.create(**ask(), stream=True)
    for _ in range(3):
        assert next(stream).choices[0].delta.content == "word "
    assert not endless.left.is_set()
    stream.close()
    assert endless.left.wait(LIMIT), "the provider still talks"


def test_a_call_that_times_out(start_daemon, endless):
    client = start_daemon(endless.url).client(timeout=0.5, max_retries=0)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**ask())
    assert endless.asked.is_set()
    assert endless.left.wait(LIMIT), "the provider still works"
