"""A token as a cookie: a page's EventSource and images cannot send a header."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException

from fusar_edge.service.http.auth import COOKIE
from fusar_edge.service.http.documented import problems
from fusar_edge.service.parts import ServiceParts

LIFETIME_S = 12 * 3600
"""A shift. A revoked token ends it sooner."""


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[!-~]+$")]


class Session(BaseModel):
    """What the asker may do."""

    token_required: bool
    scopes: list[str]
    """Of submit, read, admin; none: a token has to be given first."""


def router(parts: ServiceParts) -> APIRouter:
    """GET, POST and DELETE /v1/session."""
    routes = APIRouter(tags=["session"])

    @routes.get("/v1/session")
    async def session(request: Request) -> Session:
        """Whether a token is needed, and what the one given allows."""
        return Session(token_required=request.app.state.door.token_required, scopes=sorted(request.state.access.scopes))

    @routes.post("/v1/session", responses=problems(401))
    async def log_in(request: Request, response: Response, login: Login) -> Session:
        """Give a token once; a cookie that scripts cannot read stands for it until it is revoked, or for 12 hours."""
        if not request.app.state.door.token_required:
            return Session(token_required=False, scopes=sorted(request.state.access.scopes))
        scopes = parts.tokens.scopes_of(login.token)
        if scopes is None:
            raise HTTPException(
                401, "this token is not valid: it was mistyped, or revoked", {"WWW-Authenticate": "Bearer"}
            )
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, login.token, max_age=LIFETIME_S, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return Session(token_required=True, scopes=sorted(scopes))

    @routes.delete("/v1/session", status_code=204)
    async def log_out(response: Response) -> None:
        """Forget the cookie; the token stays valid."""
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")

    return routes
