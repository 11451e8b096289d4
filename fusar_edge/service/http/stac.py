"""POST /v1/scenes/stac: the scene lies elsewhere, and an item says where."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.uploads import Question, answer, known
from fusar_edge.service.http.views import Scene
from fusar_edge.service.intake.stac import offer_item
from fusar_edge.service.parts import ServiceParts

JSON = ("application/json", "application/geo+json")
AT_ONCE = 4
"""Downloads side by side; each holds a thread for as long as it takes."""

ITEM = {
    "type": "object",
    "description": "A STAC item: a GeoTIFF among its assets is the scene",
    "required": ["id", "type", "stac_version", "assets"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "Feature"},
        "stac_version": {"type": "string"},
        "assets": {"type": "object", "additionalProperties": {"type": "object", "required": ["href"]}},
    },
}


def _one(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: value}, "additionalProperties": False}


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            JSON[0]: {
                "schema": {
                    "oneOf": [
                        _one("item", ITEM),
                        _one("href", {"type": "string", "minLength": 1, "maxLength": 2048}),
                    ]
                }
            }
        },
    }
}


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The item itself, or where it is."""

    item: dict[str, Any] | None = None
    href: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None = None

    def __post_init__(self) -> None:
        if (self.item is None) == (self.href is None):
            raise ValueError("give either `item` or `href`")


def router(parts: ServiceParts) -> APIRouter:
    """POST /v1/scenes/stac."""
    routes = APIRouter(tags=["scenes"], responses={**problems(415, 422, 429, 503, 507), **known()})
    turn = anyio.CapacityLimiter(AT_ONCE)

    @routes.post("/v1/scenes/stac", status_code=202, openapi_extra=BODY)
    async def give_item(request: Request, response: Response, question: Annotated[Question, Depends()]) -> Scene:
        """Give a STAC item, or its address: the scene is fetched from the hosts and folders that settings allow.

        Answers as POST /v1/scenes does, once the file is here.
        """
        question.check(parts.bundle)
        given = parsed(await request.body(), request.headers.get("content-type", ""))
        if turn.available_tokens < 1:
            raise HTTPException(429, f"{AT_ONCE} items are being fetched, the most at once", {"Retry-After": "10"})
        offer = partial(offer_item, parts.intake, item=given.item, href=given.href, **question.options())
        row, new = await anyio.to_thread.run_sync(offer, limiter=turn)
        return answer(response, row, new)

    return routes


def parsed(body: bytes, content_type: str) -> Given:
    """415 for another type, 422 for what is no JSON, or not the JSON that is wanted."""
    if (kind := content_type.partition(";")[0].strip().lower()) not in JSON:
        raise HTTPException(415, f"Content-Type {kind[:80]!r} is no item: send {JSON[0]}")
    try:
        return msgspec.json.decode(body, type=Given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(422, f"the body is not what is wanted: {str(error)[:200]}") from None
