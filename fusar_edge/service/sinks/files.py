"""results/ID/result.geojson and item.json of every scene that is done, error.json of one that failed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.errors import EdgeError
from fusar_edge.manifest import output_file
from fusar_edge.runtime.geojson import collection_bytes
from fusar_edge.service.journal import Journal, Message, MessageKind, SceneRow
from fusar_edge.service.sinks.sink import SinkError
from fusar_edge.service.stac import ITEM, RESULT, item_from_collection

log = logging.getLogger(__name__)

ERROR = "error.json"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""No file can be written now, whosever it is."""


class FilesSink:
    """Each file appears whole, and is on the disk before the journal says so."""

    name = "files"
    kinds: frozenset[MessageKind] = frozenset(("scene", "failed"))
    settle_s = 0.0

    def __init__(self, results: Path, journal: Journal, collect: Callable[[SceneRow], dict[str, Any]]) -> None:
        """`results`: the folder; `collect` makes the GeoJSON of a scene that is done."""
        self._results, self._journal, self._collect = results, journal, collect

    def send(self, messages: Sequence[Message]) -> None:
        sent: list[str] = []
        refused: dict[str, str] = {}
        for message in messages:
            try:
                self._write(message)
            except OSError as problem:  # its path stays out of what a status page shows
                reason = f"results of scene {message.scene_id} cannot be written: {problem.strerror}"
                if problem.errno in NO_ROOM:
                    raise SinkError(f"{reason}; free disk space", sent=sent, refused=refused) from problem
                refused[message.key] = reason  # of this scene's folder: the others need not wait
                continue
            except EdgeError as problem:
                raise SinkError(str(problem), sent=sent, refused=refused) from problem
            sent.append(message.key)
        if refused:
            raise SinkError(next(iter(refused.values())), sent=sent, refused=refused)

    def line(self) -> object:
        return self

    def interrupt(self) -> None:
        """Writing takes no time that is worth it."""

    def close(self) -> None:
        """Nothing is held."""

    def _write(self, message: Message) -> None:
        folder = self._results / message.scene_id
        row = self._journal.scene(message.scene_id)
        if row is None:
            log.warning("scene %s is not in the journal any more: no results are written", message.scene_id)
            return
        _sweep(folder)
        if message.kind == "failed":
            if row.status == "failed":  # else it was tried again since
                _replace(folder / ERROR, message.payload + b"\n")
            return
        collection = self._collect(row)
        _replace(folder / RESULT, collection_bytes(collection))
        _replace(folder / ITEM, item_bytes(item_from_collection(collection, row)))
        (folder / ERROR).unlink(missing_ok=True)


def item_bytes(item: dict[str, Any]) -> bytes:
    """UTF-8 text for people too."""
    return msgspec.json.format(msgspec.json.encode(item), indent=2) + b"\n"


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole, and make sure that a power cut does not take it back."""
    with output_file(path, force=True) as work, work.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what a killed process had begun."""
    for path in folder.glob(".*"):
        path.unlink(missing_ok=True)
