"""HTTP POST of each message to the operator's URL.

Headers: Idempotency-Key, the message's key, the same in every repetition; X-Fusar-Edge-Signature, `sha256=` and the hex
HMAC-SHA256 of the body, where there is a secret. Any 2xx is thanks. 408, 429 and 5xx: tried again, after Retry-After if
given. Any other answer is a refusal of that message; after five it is dead, and the others go on.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx

from fusar_edge.errors import InputError
from fusar_edge.service.journal import Message
from fusar_edge.service.journal.outbox import ALL_KINDS
from fusar_edge.service.settings import WebhookSettings
from fusar_edge.service.sinks.sink import SinkError

KEY_HEADER = "Idempotency-Key"
SIGNATURE_HEADER = "X-Fusar-Edge-Signature"
_LATER = (408, 429)


class WebhookSink:
    name = "webhook"
    kinds = ALL_KINDS
    settle_s = 0.0

    def __init__(self, settings: WebhookSettings) -> None:
        """InputError where the URL is none, or the secret cannot be read."""
        try:
            url = httpx.URL(settings.url)
        except httpx.InvalidURL as problem:
            raise InputError(f"[webhook] url {settings.url!r}: {problem}; give one such as https://host/path") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"[webhook] url {settings.url!r}: give one such as https://host/path")
        self._url = url
        self._secret = None if settings.secret_file is None else secret_from_file(settings.secret_file)
        # Proxies of the environment would see the results; what the operator named is where they go.
        self._client = httpx.Client(timeout=settings.timeout_s, trust_env=False, follow_redirects=False)
        self._closing = threading.Event()

    def send(self, messages: Sequence[Message]) -> None:
        sent: list[str] = []
        refused: dict[str, str] = {}
        for message in messages:
            if self._closing.is_set():
                raise SinkError("the service is stopping", sent=sent, refused=refused)
            try:
                answer = self._client.post(self._url, content=message.payload, headers=self._headers(message))
            except httpx.HTTPError as problem:
                what = f"the webhook cannot be reached ({type(problem).__name__}): {problem}"
                raise SinkError(what, sent=sent, refused=refused) from problem
            if answer.is_success:
                sent.append(message.key)
            elif answer.status_code in _LATER or answer.is_server_error:
                what = f"the webhook says {answer.status_code} {answer.reason_phrase}"
                raise SinkError(what, sent=sent, refused=refused, retry_after_s=_retry_after_s(answer))
            else:
                refused[message.key] = f"the webhook says {answer.status_code} {answer.reason_phrase}"
        if refused:
            raise SinkError(next(iter(refused.values())), sent=sent, refused=refused)

    def line(self) -> object:
        return self

    def interrupt(self) -> None:
        self._closing.set()

    def close(self) -> None:
        self._client.close()

    def _headers(self, message: Message) -> dict[str, str]:
        headers = {"Content-Type": "application/json", KEY_HEADER: message.key}
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, message.payload)
        return headers


def signature(secret: bytes, body: bytes) -> str:
    """What the receiver computes too, and compares in constant time."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


def secret_from_file(path: Path) -> bytes:
    """The file's content without white space at its ends. InputError where there is none."""
    try:
        secret = path.read_bytes().strip()
    except OSError as problem:
        raise InputError(f"{path}: the secret cannot be read ({problem.strerror}); give a file that holds it") from None
    if not secret:
        raise InputError(f"{path} is empty: write the secret into it")
    return secret


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Seconds; a date, the other form that HTTP has, is not worth the parsing: the courier waits by itself."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
