"""What every verb says: lines and bars for a person on stderr, one line of JSON for a program on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Out = Annotated[Path, typer.Option(help="Folder to write; it appears whole or not at all.")]
Threads = Annotated[int, typer.Option(min=0, help="Processor threads; 0: all.")]
Sigma = Annotated[
    float | None, typer.Option(min=0, help="Width of TLM's Gaussian, where no tlm_config.json says it: 2.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help="Of the checkpoint's base, where no manifest.json says it."),
]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Name on the shelf, or a path to a .toml file.")]


def say(text: str, *, markup: bool = True) -> None:
    """A line for a person, on stderr. `markup`: its square brackets are rich's; else they are text."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=markup)


def result(value: dict[str, Any]) -> None:
    """The last line on stdout, for a program."""
    print(json.dumps(value, default=str))


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, called with (done, total[, text]). Not `shown`: for one of several processes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=None)

        def step(done: int, total: int, text: str = "") -> None:
            label = f"{what} {text.splitlines()[0][:48]}" if text.strip() else what
            progress.update(task, completed=done, total=total, description=label.replace("[", r"\["))

        yield step
