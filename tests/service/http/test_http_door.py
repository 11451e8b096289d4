"""Who is let in: hosts, origins, tokens, sizes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from service_parts import ask

from fusar_edge.service.http.app import make_app
from fusar_edge.service.http.auth import COOKIE, is_loopback
from fusar_edge.service.http.gate import BODY_BYTES
from fusar_edge.service.settings import HttpSettings


@pytest.fixture
def guarded(parts_with: Callable[..., Any]) -> Any:
    """Parts of a service that wants tokens."""
    return parts_with(http=HttpSettings(host="0.0.0.0", names=("station.example",)))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_loopback_needs_no_token(parts: Any) -> None:
    assert ask(make_app(parts), "GET", "/v1/scenes").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "station.example", ""])
def test_every_other_address_needs_one(parts_with: Callable[..., Any], host: str) -> None:
    answer = ask(make_app(parts_with(http=HttpSettings(host=host))), "GET", "/v1/scenes")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "scope read" in answer.json()["detail"]


def test_a_setting_asks_for_tokens_on_loopback_too(parts_with: Callable[..., Any]) -> None:
    app = make_app(parts_with(http=HttpSettings(require_token=True)))
    assert ask(app, "GET", "/v1/scenes").status_code == 401


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (["read"], "GET", "/v1/scenes", 200),
        (["submit"], "GET", "/v1/scenes", 403),
        (["admin"], "GET", "/v1/scenes", 200),
        (["read"], "POST", "/v1/scenes", 403),
        (["submit"], "POST", "/v1/scenes", 415),
        (["submit", "read"], "POST", "/v1/scenes/0123456789abcdef/retry", 403),
        (["admin"], "POST", "/v1/scenes/0123456789abcdef/retry", 404),
        (["submit"], "GET", "/metrics", 403),
        (["read"], "GET", "/metrics", 200),
        (["submit"], "GET", "/v1/nothing/of/the/kind", 403),
        (["read"], "GET", "/v1/nothing/of/the/kind", 404),
    ],
)
def test_a_token_opens_what_its_scopes_say(
    guarded: Any, scopes: list[str], method: str, path: str, status: int
) -> None:
    text, _ = guarded.tokens.create("somebody", scopes)
    answer = ask(make_app(guarded), method, path, headers=bearer(text))
    assert answer.status_code == status
    assert "fe_" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer fe_wrong"},
        {"Authorization": "Basic ZmU6eA=="},
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": f"{COOKIE}=fe_wrong"},
    ],
)
def test_a_token_that_is_not_valid_opens_nothing(guarded: Any, headers: dict[str, Any]) -> None:
    guarded.tokens.create("somebody", ["admin"])
    assert ask(make_app(guarded), "GET", "/v1/scenes", headers=headers).status_code == 401


def test_no_route_but_the_open_ones_answers_without_a_token(guarded: Any) -> None:
    app = make_app(guarded)
    opened = {
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if ask(app, method.upper(), path.replace("{", "").replace("}", "")).status_code not in (401, 403)
    }
    session = {(method, "/v1/session") for method in ("GET", "POST", "DELETE")}
    assert opened == {("GET", "/healthz"), ("GET", "/readyz"), *session}


def test_unreadable_tokens_let_nobody_in(guarded: Any) -> None:
    text, _ = guarded.tokens.create("somebody", ["admin"])
    guarded.tokens.path.write_text("{")
    answer = ask(make_app(guarded), "GET", "/v1/scenes", headers=bearer(text))
    assert answer.status_code == 503
    assert str(guarded.settings.data_dir) not in answer.text


def test_a_session_is_a_cookie_that_scripts_cannot_read(guarded: Any) -> None:
    app = make_app(guarded)
    text, token = guarded.tokens.create("page", ["read"])
    assert ask(app, "GET", "/v1/session").json() == {"token_required": True, "scopes": []}
    assert ask(app, "POST", "/v1/session", json={"token": "fe_wrong"}).status_code == 401
    answer = ask(app, "POST", "/v1/session", json={"token": text})
    assert answer.json() == {"token_required": True, "scopes": ["read"]}
    flags = {flag.strip().lower() for flag in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    cookie = {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}
    assert ask(app, "GET", "/v1/scenes", headers=cookie).status_code == 200
    guarded.tokens.revoke(token.id)
    assert ask(app, "GET", "/v1/scenes", headers=cookie).status_code == 401
    assert 'fusar_edge_session=""' in ask(app, "DELETE", "/v1/session").headers["set-cookie"]


def test_a_session_over_tls_has_a_secure_cookie(guarded: Any) -> None:
    text, _ = guarded.tokens.create("page", ["read"])
    answer = ask(make_app(guarded), "POST", "https://station.example/v1/session", json={"token": text})
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8077", 200),
        ("[::1]:8077", 200),
        ("Station.Example.:8077", 200),
        ("evil.example", 400),
        ("station.example.evil.example", 400),
        ("localhost@evil.example", 400),
        ("[::1", 400),
        ("[x]", 400),
        ("", 400),
    ],
)
def test_a_host_name_of_others_is_refused(parts_with: Callable[..., Any], host: str, status: int) -> None:
    parts = parts_with(http=HttpSettings(names=("station.example",)))
    headers = {"Host": host, **bearer(parts.tokens.create("somebody", ["read"])[0])}
    assert ask(make_app(parts), "GET", "/v1/scenes", headers=headers).status_code == status


def test_probes_may_ask_under_any_name(parts: Any) -> None:
    app = make_app(parts)
    assert ask(app, "GET", "/healthz", headers={"Host": "10.0.0.7:8077"}).json() == {"status": "alive"}
    assert ask(app, "GET", "/readyz", headers={"Host": "10.0.0.7:8077"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 204),
        ("http://localhost:80", 204),
        ("https://station.example", 204),
        ("http://localhost:3000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_a_page_of_another_site_changes_nothing(parts_with: Callable[..., Any], origin: str, status: int) -> None:
    parts = parts_with(http=HttpSettings(names=("station.example",)))
    app, headers = make_app(parts), {"Origin": origin, **bearer(parts.tokens.create("somebody", ["read"])[0])}
    assert ask(app, "DELETE", "/v1/session", headers=headers).status_code == status
    assert ask(app, "GET", "/v1/scenes", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/v1/scenes", "/nowhere", "/v1/scenes/x"])
def test_every_answer_carries_headers_of_safety(parts: Any, path: str) -> None:
    headers = ask(make_app(parts), "GET", path).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not path.startswith("/v1") or headers["cache-control"] == "no-store"


def test_a_body_that_is_too_long_is_refused_when_it_says_so_and_when_it_turns_out(parts: Any) -> None:
    app, asked = make_app(parts), []

    async def chunks(size: int) -> AsyncIterator[bytes]:
        asked.append(size)
        yield b" " * size

    json = {"Content-Type": "application/json"}
    declared = json | {"Content-Length": str(BODY_BYTES + 1)}
    for content, headers in ((chunks(BODY_BYTES + 1), json), (chunks(1), declared)):
        answer = ask(app, "POST", "/v1/session", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
    assert asked == [BODY_BYTES + 1]


def test_loopback_is_told_from_other_hosts() -> None:
    assert all(is_loopback(host) for host in ("localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.1", "::1"))
    assert not any(is_loopback(host) for host in ("", "0.0.0.0", "::", "localhost.example", "127.0.0.1.example"))


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_what_comes_through_a_proxy_is_not_of_this_machine(parts: Any, header: str) -> None:
    """Behind a reverse proxy everybody's address is loopback."""
    answer = ask(make_app(parts), "GET", "/v1/scenes", headers={header: "203.0.113.9"})
    assert answer.status_code == 403
    assert "http.require_token" in answer.json()["detail"]
    assert ask(make_app(parts), "GET", "/healthz", headers={header: "203.0.113.9"}).status_code == 200


def test_a_name_that_others_use_asks_for_tokens(parts_with: Callable[..., Any]) -> None:
    app = make_app(parts_with(http=HttpSettings(names=("station.example",))))
    assert ask(app, "GET", "/v1/scenes").status_code == 401


def test_a_page_on_another_port_of_this_machine_changes_nothing(parts: Any) -> None:
    headers = {"Host": "127.0.0.1:8077", "Origin": "http://127.0.0.1:8888"}
    assert ask(make_app(parts), "POST", "/v1/sinks/files/retry", headers=headers).status_code == 403
