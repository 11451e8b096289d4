"""Answers and errors of chat completions as objects of OpenAI's form."""

from __future__ import annotations

import errno
import json
import math
import time
import uuid
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from fusar_edge.errors import BusyError, EdgeError, InputError
from fusar_edge.runtime.generate import Generation
from fusar_edge.service.http.chat_request import ChatError
from fusar_edge.service.http.problems import without_paths

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Reply:
    """The objects of one answer."""

    def __init__(self, model: str, fingerprint: str, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._head["system_fingerprint"] = fingerprint

    def whole(self, text: str, generation: Generation) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(generation)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage(generation)}

    def chunk(self, delta: dict[str, Any] | None, finish: str | None = None, **members: Any) -> bytes:
        """One event; `delta` None: no choices, as for the usage at the end."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        choices = [] if delta is None else [choice]
        return event({**self._head, "object": "chat.completion.chunk", "choices": choices, **members})

    def usage(self, generation: Generation) -> dict[str, int]:
        answered = len(generation.ids)
        total = self._prompt_tokens + answered
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": answered, "total_tokens": total}


def finish_reason(generation: Generation) -> str:
    """`stop` where the model ended its answer; `length` where max_tokens or the context did."""
    return "stop" if generation.stop_reason == "eos" else "length"


def error_response(problem: BaseException) -> Response:
    """In OpenAI's form, with Retry-After where waiting helps."""
    status, body = error_body(problem)
    seconds = problem.retry_after_s if isinstance(problem, BusyError) else 10.0
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))} if status in (429, 503) else {}
    return JSONResponse(body, status, headers)


def error_body(problem: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and error object; no path, and of an error that nobody foresaw not even its words."""
    message, param, code = without_paths(str(problem)), None, None
    match problem:
        case ChatError():
            status, param, code = problem.status, problem.param, problem.code
        case BusyError():
            status, code = 429, "rate_limit_exceeded"
        case InputError():
            status = 400
        case EdgeError():
            status = 503
        case OSError() if problem.errno in FULL:
            status, message = 507, "the disk of the service is full or read-only: no image can be taken in"
        case _:
            status, message = 500, "the service failed on this request; its log says why"
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
