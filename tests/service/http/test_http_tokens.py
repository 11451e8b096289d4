from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from fusar_edge.errors import InputError
from fusar_edge.service.tokens import ALL, Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json")


def test_a_token_allows_what_it_was_made_for(tokens: Tokens) -> None:
    text, token = tokens.create("uplink", ["submit", "read"])
    assert token.scopes == ("submit", "read")
    assert tokens.scopes_of(text) == {"submit", "read"}
    assert tokens.scopes_of(text + "x") is None
    assert tokens.scopes_of("") is None


def test_admin_is_all_scopes(tokens: Tokens) -> None:
    assert tokens.scopes_of(tokens.create("chief", ["admin"])[0]) == ALL


def test_the_file_holds_no_token_and_is_for_its_owner_alone(tokens: Tokens) -> None:
    text, _ = tokens.create("uplink", ["submit"])
    assert text not in tokens.path.read_text()
    assert text.removeprefix("fe_") not in tokens.path.read_text()
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    assert [path.name for path in tokens.path.parent.iterdir()] == ["tokens.json"]


def test_a_revoked_token_is_not_valid_in_a_service_that_runs(tokens: Tokens) -> None:
    text, token = tokens.create("uplink", ["submit"])
    service = Tokens(tokens.path)
    assert service.scopes_of(text) == {"submit"}
    tokens.revoke(token.id)
    assert service.scopes_of(text) is None
    with pytest.raises(InputError, match="no token has the id"):
        tokens.revoke(token.id)


def test_tokens_made_at_once_by_several_processes_are_all_kept(tokens: Tokens) -> None:
    makers = [
        threading.Thread(target=Tokens(tokens.path).create, args=(f"station {n}", ["read"]))  # own object, own file
        for n in range(8)
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert {token.name for token in tokens.list()} == {f"station {n}" for n in range(8)}


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("", ["read"], "cannot name a token"),
        ("a\nb", ["read"], "cannot name a token"),
        ("x", [], "no scope"),
        ("x", ["write"], "write given; a token has one or more of: submit, read, admin"),
    ],
)
def test_a_token_without_a_name_or_a_known_scope_is_refused(
    tokens: Tokens, name: str, scopes: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tokens.create(name, scopes)
    assert not tokens.path.exists()


def test_a_file_that_others_can_read_is_refused(tokens: Tokens) -> None:
    text, _ = tokens.create("uplink", ["read"])
    tokens.path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Tokens(tokens.path).scopes_of(text)


@pytest.mark.parametrize("content", ["", "{", '{"tokens": [], "version": 2}', '{"tokens": [{"id": 1}]}'])
def test_a_damaged_file_is_named_and_nobody_is_let_in(tokens: Tokens, content: str) -> None:
    text, _ = tokens.create("uplink", ["read"])
    tokens.path.write_text(content)
    with pytest.raises(InputError, match=r"tokens\.json: .*restore it"):
        tokens.scopes_of(text)


def test_the_file_says_who_has_what(tokens: Tokens) -> None:
    _, token = tokens.create("uplink", ["read"], now=5.0)
    (kept,) = json.loads(tokens.path.read_text())["tokens"]
    assert kept == {
        "id": token.id,
        "name": "uplink",
        "scopes": ["read"],
        "sha256": token.sha256,
        "created_at": 5.0,
    }
