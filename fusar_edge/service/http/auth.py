"""Who may ask: host names, origins of pages, tokens and what they allow."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from fusar_edge.service.settings import HttpSettings
from fusar_edge.service.tokens import ALL, Scope, Tokens

COOKIE = "fusar_edge_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PROBES = frozenset({"/healthz", "/readyz"})
"""Open to all, under any host name: a probe asks for an address."""
OPEN = PROBES | {"/", "/v1/session", "/openapi.json"}
"""Asked without a token: nothing in them was given by anybody."""
OPEN_BELOW = "/page/"
"""So are the assets of the page, which has to ask for a token."""
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What a reverse proxy adds: behind one, everybody comes from this machine."""
NOBODY: frozenset[Scope] = frozenset()


@dataclass(frozen=True)
class Access:
    """What one request may do."""

    scopes: frozenset[Scope]
    token: str = ""
    """Empty: none was given, or none is needed."""


class Door:
    """Decides about requests before any route sees them."""

    def __init__(self, settings: HttpSettings, tokens: Tokens) -> None:
        self.tokens = tokens
        self._public = frozenset(name.lower().rstrip(".") for name in settings.names if not is_loopback(name))
        # A name under which others may ask says that others do, through whatever proxy.
        self.token_required = settings.require_token or not is_loopback(settings.host) or bool(self._public)
        self._names = frozenset(name.lower().rstrip(".") for name in (*settings.names, settings.host))

    def refusal(self, method: str, path: str, headers: Headers) -> HTTPException | None:
        """400 for a host that is not this one, 403 for a page of another site."""
        host = headers.get("host", "")
        if path not in PROBES and not self._is_here(_name(host)):
            return HTTPException(
                400,
                f"Host {host[:100]!r} is not this service: it answers to localhost, 127.0.0.1, [::1] and the names in "
                "http.names of its settings",
            )
        if path not in PROBES and not self.token_required and any(name in headers for name in FORWARDED):
            return HTTPException(
                403,
                "this came through a proxy, and the service asks for no token: set http.require_token (or http.names, "
                "the names that people use) in its settings, and make tokens with `fusar-edge token create`",
            )
        origin = headers.get("origin")
        if method not in SAFE and origin is not None and not self._is_same(origin, host):
            return HTTPException(403, f"a page of {origin[:100]!r} may not do this; open the page of this service")
        return None

    def access(self, headers: Headers, cookie: str | None) -> Access:
        """What the token of a request allows: all of it where none is needed. The header wins over the cookie."""
        kind, _, text = headers.get("authorization", "").partition(" ")
        token = text.strip() if kind.lower() == "bearer" else (cookie or "")
        if not self.token_required:
            return Access(ALL)
        return Access((self.tokens.scopes_of(token) if token else None) or NOBODY, token)

    def holds(self, access: Access) -> bool:
        """Whether it is still worth what it was: a stream outlives its token's revocation otherwise."""
        return not self.token_required or self.tokens.scopes_of(access.token) == access.scopes

    def check(self, access: Access, needed: Scope) -> None:
        """Raise 401 without a valid token, 403 with one that does not allow this."""
        if needed in access.scopes:
            return
        if access.scopes:
            held = ", ".join(sorted(access.scopes))
            raise HTTPException(403, f"this needs a token with the scope {needed}; the one given has: {held}")
        given = "the token given is not valid" if access.token else "no token was given"
        raise HTTPException(
            401,
            f"{given}: send `Authorization: Bearer TOKEN`; the operator makes one with the scope {needed}",
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_here(self, name: str) -> bool:
        return name in self._names or is_loopback(name)

    def _is_same(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
            name = parts.hostname or ""
        except ValueError:
            return False
        # A proxy that ends TLS may ask under its own idea of the host; the name that people use is in the settings.
        return _authority(parts.netloc) == _authority(host.lower()) or name in self._public


def scope_needed(method: str, path: str) -> Scope | None:
    """What every route needs unless it asks for more itself, so that none can be forgotten."""
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    return "read" if method in SAFE else "submit"


def needs(scope: Scope) -> Callable[[Request], None]:
    """Dependency of a route that asks for more than `scope_needed` says."""

    def check(request: Request) -> None:
        door: Door = request.app.state.door
        door.check(request.state.access, scope)

    return check


def is_loopback(host: str) -> bool:
    """Of a host name or address as given; no name is resolved."""
    name = host.lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """`Station.Example.:8077` -> `station.example`, `[::1]:8077` -> `::1`; empty where it is none."""
    try:
        return (urlsplit(f"//{host.lower()}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _authority(netloc: str) -> str:
    """Without the port that the scheme implies: browsers leave it out of Host and of Origin alike."""
    return netloc.removesuffix(":80").removesuffix(":443")
