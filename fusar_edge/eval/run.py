"""`fusar-edge eval`: asks a bundle or a checkpoint every question of a manifest and measures the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fusar_edge.data.tasks import TASKS, parse_answer
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.errors import BundleError, DataError, InputError
from fusar_edge.eval.metrics import Scored, task_metrics
from fusar_edge.manifest import FILENAME, check_output, output_file, package_versions, read_manifest, sha256_file
from fusar_edge.runtime.bundle import bundle_path, open_bundle
from fusar_edge.runtime.session import Session
from fusar_edge.sar.image import grey_from_file, resized

Progress = Callable[[int, int, str], None]


class _ImageAnchors:
    """The per-image anchors of a manifest, in the form that a session takes; all of them count."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features
        self.mask = np.ones(len(features), bool)

    def vectors(self) -> NDArray[np.float32]:
        return self.features


def _per_image_features(session: Session, features: NDArray[np.float32], aef: Path) -> NDArray[np.float32]:
    """What the session's graph takes for vectors [S, 64]."""
    bundle = session.bundle
    if bundle.settings.anchors.form == "codes":
        return features
    if bundle.manifest.stage == "build":
        raise BundleError(
            f"{aef}: per-image vectors cannot be given to {bundle.folder}: it takes the coefficients of baked tables "
            "and has no MLP; `fusar-edge build --data` measures such a bundle, on the folder of its graphs"
        )
    from fusar_edge.export.baking.projector import read_projector

    return read_projector(bundle.folder).coefficients(features)


def open_session(target: str, threads: int = 0, *, grammar: bool = True) -> Session:
    """A session on a bundle (folder or `default`) or on a checkpoint folder (needs the extra `workshop`)."""
    if _is_checkpoint(target):
        from fusar_edge.eval.checkpoint_session import open_checkpoint_session

        return open_checkpoint_session(target, grammar=grammar)
    return Session(open_bundle(bundle_path(target)), threads, grammar=grammar)


def _is_checkpoint(target: str) -> bool:
    folder = Path(target)
    if target.startswith("hub:"):
        return True
    if (folder / FILENAME).is_file():
        return target != "default" and read_manifest(folder, InputError).stage != "build"
    return any((folder / name).is_file() for name in ("adapter_config.json", "vec64_film.pt"))


def _selected(data: Path, tasks: Sequence[str], images: int | None) -> dict[Path, list[Triplet]]:
    unknown = [t for t in tasks if t not in TASKS]
    if unknown:
        raise InputError(f"--task {', '.join(unknown)}: allowed are {', '.join(TASKS)}")
    rows = [t for t in read_triplets(data) if t.task and (not tasks or t.task in tasks)]
    if not rows:
        raise DataError(f"{data}: no record with a known task{' of ' + ', '.join(tasks) if tasks else ''}")
    groups = triplets_by_image(rows)
    return dict(list(groups.items())[:images])


def _asked_image(session: Session, image: Path, triplets: list[Triplet]) -> list[Scored]:
    grey = resized(grey_from_file(image, session.bundle.radiometry), session.bundle.settings.image_size)
    aef = triplets[0].aef
    if aef is None:
        session.look(grey)
    else:
        from fusar_edge.anchors.per_image import read_anchor_file

        anchors = read_anchor_file(aef)
        features = _per_image_features(session, anchors.features, aef)
        session.look(grey, _ImageAnchors(features), anchors.positions)
    scored = []
    for triplet in triplets:
        answer = session.ask(str(triplet.task), question=triplet.question)
        confidence = answer.generation.confidence
        scored.append(
            Scored(str(triplet.task), triplet.answer, answer.parsed, confidence, triplet.id or "", triplet.question)
        )
    return scored


def ask_manifest(
    session: Session,
    data: Path,
    *,
    tasks: Sequence[str] = (),
    images: int | None = None,
    progress: Progress | None = None,
) -> list[Scored]:
    """Every question of a manifest (of its first `images` images), answered."""
    groups = _selected(data, tasks, images)
    scored: list[Scored] = []
    for number, (image, triplets) in enumerate(groups.items(), 1):
        scored += _asked_image(session, image, triplets)
        if progress:
            progress(number, len(groups), scored[-1].said.text)
    return scored


def evaluate(
    target: str,
    data: Path,
    *,
    tasks: Sequence[str] = (),
    images: int | None = None,
    out: Path | None = None,
    answers: Path | None = None,
    threads: int = 0,
    grammar: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of `target` on a manifest; greedy answers, one image at a time.

    `images`: only the first so many. `out`: the result as JSON. `answers`: every question, reference and answer as
    JSONL, to look at what went wrong. `grammar`: answers keep to the grammar of their task, as in a service.
    """
    for path in (out, answers):
        if path is not None:
            check_output(path, force)
    count = len(_selected(data, tasks, images))
    session = open_session(target, threads, grammar=grammar)
    scored = ask_manifest(session, data, tasks=tasks, images=images, progress=progress)
    result = {
        "target": str(target),
        "target_sha256": session.bundle.sha256,
        "model": session.bundle.settings.name,
        "grammar": grammar,
        "precision": session.bundle.settings.precision,
        "data": f"{data.parent.name}/{data.name}",
        "data_sha256": sha256_file(data),
        "images": count,
        "tasks": task_metrics(scored),
        "packages": package_versions("fusar-edge", "onnxruntime", "numpy", "torch"),
    }
    if answers is not None:
        write_answers(answers, scored, force=force)
    if out is not None:
        with output_file(out, force=force) as work:
            work.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


# Answers as a file --------------------------------------------------------------------------------------------------


class _AnswerRow(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    task: str
    question: str
    reference: str
    said: str
    parsed: bool
    confidence: float


def write_answers(path: Path, scored: Sequence[Scored], *, force: bool = False) -> None:
    """Every question, reference and answer as JSONL, in the order in which they were asked."""
    rows = [
        _AnswerRow(s.id, s.task, s.question, s.reference, s.said.text, s.said.ok, round(s.confidence, 4))
        for s in scored
    ]
    with output_file(path, force=force) as work:
        work.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def read_answers(path: Path, asked: Sequence[Triplet], data: Path) -> list[Scored]:
    """What `write_answers` wrote of the questions `asked` of the manifest `data`, the first of the file.

    DataError that names the line where it is of other questions, or cannot be read.
    """
    lines = path.read_bytes().splitlines()
    if len(lines) < len(asked):
        raise DataError(
            f"{path} holds {len(lines)} answers, {data} asks {len(asked)} questions: make it again with "
            f"`fusar-edge eval CHECKPOINT --data {data} --answers {path}`"
        )
    scored = []
    for number, (line, triplet) in enumerate(zip(lines, asked, strict=False), 1):
        try:
            row = msgspec.json.decode(line, type=_AnswerRow)
        except msgspec.MsgspecError as problem:
            raise DataError(f"{path}:{number}: {problem}; give a file that `fusar-edge eval --answers` wrote") from None
        if (row.task, row.question, row.reference) != (triplet.task, triplet.question, triplet.answer):
            raise DataError(
                f"{path}:{number} answers another question than {data} asks ({row.task}: {row.question[:60]!r}): give "
                "the answers to the same manifest, of the same images"
            )
        said = parse_answer(row.task, row.said)
        scored.append(Scored(row.task, row.reference, said, row.confidence, row.id, row.question))
    return scored
