from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from journal_scenes import tile_message

from fusar_edge.errors import InputError
from fusar_edge.service.settings import WebhookSettings
from fusar_edge.service.sinks.sink import SinkError
from fusar_edge.service.sinks.webhook import WebhookSink, signature

MESSAGES = [tile_message("0123456789abcdef", index) for index in range(4)]
KEYS = [message.key for message in MESSAGES]


class Receiver(ThreadingHTTPServer):
    """Answers with `answers` by key (status, headers); others with 204."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Idempotency-Key"]
        self.server.got.append((key, dict(self.headers), body))
        status, headers = self.server.answers.get(key, (204, {}))
        if status == 0:  # hangs up without an answer
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, **({} if status == 204 else {"Content-Length": "0"})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sink(receiver: Receiver) -> Iterator[WebhookSink]:
    made = WebhookSink(WebhookSettings(url=receiver.url, timeout_s=5.0))
    yield made
    made.close()


def test_each_message_is_posted_with_its_key(receiver: Receiver, sink: WebhookSink) -> None:
    sink.send(MESSAGES)
    assert [(key, body) for key, _, body in receiver.got] == [(m.key, m.payload) for m in MESSAGES]
    assert {headers["Content-Type"] for _, headers, _ in receiver.got} == {"application/json"}
    assert all("X-Fusar-Edge-Signature" not in headers for _, headers, _ in receiver.got)


def test_a_secret_signs_each_body(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("Jefe\n")
    sink = WebhookSink(WebhookSettings(url=receiver.url, secret_file=tmp_path / "secret"))
    sink.send(MESSAGES[:1])
    sink.close()
    assert receiver.got[0][1]["X-Fusar-Edge-Signature"] == signature(b"Jefe", MESSAGES[0].payload)


def test_signatures_are_those_of_rfc_4231() -> None:
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"  # test case 2
    assert signature(b"Jefe", b"what do ya want for nothing?") == f"sha256={expected}"


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_receiver_that_is_not_well_stops_the_batch_there(receiver: Receiver, sink: WebhookSink, status: int) -> None:
    receiver.answers[KEYS[1]] = (status, {"Retry-After": "7"})
    with pytest.raises(SinkError, match=f"the webhook says {status}") as caught:
        sink.send(MESSAGES)
    assert (caught.value.sent, caught.value.refused, caught.value.retry_after_s) == ((KEYS[0],), {}, 7.0)
    assert [key for key, _, _ in receiver.got] == KEYS[:2]


@pytest.mark.parametrize("status", [400, 403, 404, 410, 301])
def test_a_refusal_is_of_one_message_and_the_others_go_on(receiver: Receiver, sink: WebhookSink, status: int) -> None:
    receiver.answers[KEYS[1]] = (status, {"Location": "http://127.0.0.1:9/"})
    with pytest.raises(SinkError) as caught:
        sink.send(MESSAGES)
    assert caught.value.sent == (KEYS[0], *KEYS[2:])
    assert list(caught.value.refused) == [KEYS[1]]
    assert f"says {status}" in caught.value.refused[KEYS[1]]
    assert [key for key, _, _ in receiver.got] == KEYS


def test_a_receiver_that_hangs_up_leaves_the_message_unsent(receiver: Receiver, sink: WebhookSink) -> None:
    receiver.answers[KEYS[2]] = (0, {})
    with pytest.raises(SinkError, match="cannot be reached") as caught:
        sink.send(MESSAGES)
    assert caught.value.sent == tuple(KEYS[:2])
    receiver.answers.clear()
    sink.send(MESSAGES[2:])
    assert [key for key, _, _ in receiver.got][-2:] == KEYS[2:]


def test_a_date_to_retry_after_is_left_to_the_courier(receiver: Receiver, sink: WebhookSink) -> None:
    receiver.answers[KEYS[0]] = (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    with pytest.raises(SinkError) as caught:
        sink.send(MESSAGES)
    assert caught.value.retry_after_s is None


def test_nobody_at_the_address_is_a_reason_to_wait() -> None:
    sink = WebhookSink(WebhookSettings(url="http://127.0.0.1:9/hook"))
    with pytest.raises(SinkError, match="cannot be reached"):
        sink.send(MESSAGES)
    sink.close()


def test_an_interrupted_sink_posts_no_more(receiver: Receiver, sink: WebhookSink) -> None:
    sink.interrupt()
    with pytest.raises(SinkError, match="stopping"):
        sink.send(MESSAGES)
    assert receiver.got == []


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "http://", "http://[::1"])
def test_an_url_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(InputError, match=r"\[webhook\] url .*https://host/path"):
        WebhookSink(WebhookSettings(url=url))


def test_a_secret_that_cannot_be_read_or_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        WebhookSink(WebhookSettings(url="http://host/", secret_file=tmp_path / "none"))
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        WebhookSink(WebhookSettings(url="http://host/", secret_file=tmp_path / "empty"))
