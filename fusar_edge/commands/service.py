"""Verbs of the ground station: serve, token."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fusar_edge.commands.app import app
from fusar_edge.commands.console import result, say
from fusar_edge.commands.device import Task

DATA_DIR = Path("fusar-edge-data")
DataDir = Annotated[Path, typer.Option(help="Folder of the service: journal, uploads, results, tokens.")]
token_app = typer.Typer(
    help="Tokens of a service's clients.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(token_app, name="token")


class Profile(Enum):
    ground = "ground"
    onboard = "onboard"


class Scope(Enum):
    submit = "submit"
    read = "read"
    admin = "admin"


@app.command(epilog="Example: fusar-edge serve default --watch incoming --data-dir station")
def serve(
    bundle: Annotated[str | None, typer.Argument(metavar="[BUNDLE]", help="Bundle folder, or `default`.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Service TOML (docs/service.md); options given here win over it.")
    ] = None,
    watch: Annotated[Path | None, typer.Option(help="Folder that scenes are dropped into.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Journal, uploads, results. Default: fusar-edge-data.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen to. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one. Default: 8077.")] = None,
    profile: Annotated[
        Profile | None, typer.Option(help="onboard: no web page, power and thermal ladder, downlink queue.")
    ] = None,
    task: Annotated[list[Task] | None, typer.Option(help="What to ask of every tile; repeat.")] = None,
    label: Annotated[str | None, typer.Option(help="Class that count, grid and detect ask for. Default: ship.")] = None,
    anchors: Annotated[Path | None, typer.Option(help="AlphaEarth anchor table; none: plain Qwen2.5-VL.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Engines side by side; 0: by the machine.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Processor threads of each; 0: by the machine.")] = None,
) -> None:
    """Live captioning: scenes come by folder, upload or STAC; records go as GeoJSON, STAC, events, MQTT, webhook."""
    from fusar_edge.service.service import run
    from fusar_edge.service.settings import merged_settings

    chosen = merged_settings(
        settings,
        {"bundle": bundle, "data_dir": data_dir, "profile": profile and profile.value},
        model={
            "tasks": tuple(t.value for t in task) if task else None,
            "label": label,
            "anchors": anchors,
            "workers": workers,
            "threads": threads,
        },
        watch={"folder": watch},
        http={"host": host, "port": port},
    )
    result(run(chosen, say))


@token_app.command("create", epilog="Example: fusar-edge token create 'uplink desk' --scope submit --scope read")
def create_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it.")],
    scope: Annotated[list[Scope], typer.Option(help="What it allows; repeat. admin is all.")],
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Make a token. Its text is printed once, here; the service keeps its SHA-256 alone."""
    text, token = tokens(data_dir).create(name, [s.value for s in scope])
    result({"token": text, "id": token.id, "name": token.name, "scopes": list(token.scopes)})


@token_app.command("list", epilog="Example: fusar-edge token list --data-dir station")
def list_tokens(data_dir: DataDir = DATA_DIR) -> None:
    """The tokens that are valid."""
    known = tokens(data_dir).list()
    for token in known:
        say(f"{token.id}  {', '.join(token.scopes)}  {token.name}")
    result({"tokens": [{"id": t.id, "name": t.name, "scopes": list(t.scopes)} for t in known]})


@token_app.command("revoke", epilog="Example: fusar-edge token revoke 1a2b3c4d")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    data_dir: DataDir = DATA_DIR,
) -> None:
    """A token is not valid any more, from the next request on."""
    token = tokens(data_dir).revoke(token_id)
    result({"revoked": token.id, "name": token.name})


def tokens(data_dir: Path) -> Any:
    from fusar_edge.service.tokens import Tokens

    return Tokens(data_dir / "tokens.json")
