"""Errors as `application/problem+json` (RFC 9457). No traceback and no path of this machine is in one."""

from __future__ import annotations

import errno
import json
import logging
import math
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fusar_edge.errors import BusyError, EdgeError, InputError

MEDIA_TYPE = "application/problem+json"
RETRY_S = 10.0
"""Retry-After of what has no better guess."""
log = logging.getLogger(__name__)

# A path is cut down to its last name. Not one: what follows a letter, a digit, a dot or a slash, as in image/tiff and
# https://host/a; and the paths of this API.
_FOLDERS = re.compile(r"(?<![\w./:])/(?!v1/)(?:[^\s/'\"<>|]+/)+")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def without_paths(text: str) -> str:
    """A message for people elsewhere: `/data/scenes/1f/a.tif: truncated` -> `a.tif: truncated`."""
    return _FOLDERS.sub("", text)


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> Response:
    """The answer itself; `members` are added to it. ASCII, so that no text of the asker's can fail to encode."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def problem_from_error(error: BaseException) -> Response:
    """The one table from errors to statuses."""
    match error:
        case HTTPException():
            return problem(error.status_code, str(error.detail), dict(error.headers or {}))
        case BusyError():
            seconds = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return problem(429, without_paths(str(error)), seconds)
        case InputError():
            return problem(422, without_paths(str(error)))
        case EdgeError():
            return problem(503, without_paths(str(error)), {"Retry-After": str(math.ceil(RETRY_S))})
        case OSError() if error.errno in _FULL:
            return problem(507, "the disk of the service is full or read-only: free some of it, then send this again")
        case _:
            return problem(500, "the service failed on this request; its log says why")


def problem_from_validation(error: RequestValidationError) -> Response:
    """Where the request is wrong and how. The value is not repeated: it may be huge, secret or no JSON at all."""
    errors = [{"where": "/".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
    detail = "; ".join(f"{e['where']}: {e['what']}" for e in errors[:3])
    return problem(422, detail, errors=errors[:20])


def add_handlers(app: FastAPI) -> None:
    """Every error that a route raises on purpose."""

    async def on_error(request: Request, error: Exception) -> Response:
        answer = problem_from_error(error)
        if answer.status_code == 500:
            log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        if answer.status_code == 405 and (methods := _methods(request)):
            answer.headers["Allow"] = methods
        return answer

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_from_validation(error)

    for kind in (HTTPException, EdgeError, OSError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)


def _methods(request: Request) -> str:
    """All that the path takes: the router names those of the first route with this path alone."""
    path = getattr(request.scope.get("route"), "path", "")
    return ", ".join(sorted(method.upper() for method in request.app.openapi()["paths"].get(path, {})))
