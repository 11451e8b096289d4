"""The OpenAPI document: every status that a route, or the gate before it, can answer with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from fusar_edge.service.http.auth import COOKIE, PROBES, SAFE, scope_needed
from fusar_edge.service.http.problems import MEDIA_TYPE

REF = {"$ref": "#/components/schemas/Problem"}
BEARER, SESSION = "token", "session"
SCHEMES = {
    BEARER: {"type": "http", "scheme": "bearer"},
    SESSION: {"type": "apiKey", "in": "cookie", "name": COOKIE},
}
OTHER_FORM = ("/v1/chat/", "/v1/models")
"""Their own errors are in OpenAI's form; the gate's are problems here too."""

GENERATED = "HTTPValidationError"
"""What FastAPI says that it answers with; problems are what it does (problems.py)."""


class Problem(BaseModel):
    """RFC 9457; members beyond these may follow."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    """What was given, what is allowed, what to do."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: which problems it answers with."""
    return {status: _problem(status) for status in statuses}


def document(app: FastAPI) -> None:
    """Make `app.openapi()` tell the gate's answers too, and what each operation needs."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    parts = schema.setdefault("components", {})
    parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    token_required = app.state.door.token_required
    if token_required:
        parts["securitySchemes"] = SCHEMES
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _add_gate(path, method.upper(), operation, token_required)
    for name in (GENERATED, "ValidationError"):
        parts["schemas"].pop(name, None)
    return schema


def _add_gate(path: str, method: str, operation: dict[str, Any], token_required: bool) -> None:
    answers = operation.setdefault("responses", {})
    own_form = path.startswith(OTHER_FORM)
    if own_form and GENERATED in str(answers.get("422")):
        del answers["422"]  # FastAPI's word for a parameter that cannot be wrong: these routes check by themselves
    for status, answer in answers.items():
        if not own_form and int(status) >= 400:
            answer["content"] = _problem(int(status))["content"]
    statuses = set() if path in PROBES else {400}
    if method not in SAFE:
        statuses.add(403)
    if "requestBody" in operation and not own_form:
        statuses.add(413)
    needed = scope_needed(method, path)
    if token_required and needed:
        statuses |= {401, 403, 503}
        operation["security"] = [{BEARER: []}, {SESSION: []}]
    for status in statuses:
        gate = _problem(status)
        answers.setdefault(str(status), gate).setdefault("content", {}).update(gate["content"])


def _problem(status: int) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": REF}}}
