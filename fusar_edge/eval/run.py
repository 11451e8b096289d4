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


def open_session(
    target: str, threads: int = 0, *, grammar: bool = True, recipe: str | None = None, sigma: float | None = None
) -> Session:
    """A session on a bundle (folder or `default`) or on a checkpoint (needs the extra `workshop`).

    `recipe`: a model recipe, which a checkpoint needs that has no manifest to say its base. `sigma`: of a legacy
    official one. InputError for either with a bundle.
    """
    if recipe is not None or sigma is not None:
        _check_takes_recipe(target, "--recipe" if recipe is not None else "--sigma")
    if recipe is not None or _is_checkpoint(target):
        from fusar_edge.eval.checkpoint_session import open_checkpoint_session

        return open_checkpoint_session(target, recipe, sigma, grammar=grammar)
    return Session(open_bundle(bundle_path(target)), threads, grammar=grammar)


def _check_takes_recipe(target: str, option: str) -> None:
    """InputError where the target is a bundle."""
    if target == "default" or ((Path(target) / FILENAME).is_file() and not _is_checkpoint(target)):
        raise InputError(f"{target} is a bundle, {option} is of a checkpoint: leave {option} out")


def _is_checkpoint(target: str) -> bool:
    folder = Path(target)
    if target.startswith("hub:"):
        return True
    if (folder / FILENAME).is_file():
        return target != "default" and read_manifest(folder, InputError).stage != "build"
    official = ("adapter_config.json", "adapter_model.safetensors", "vec64_film.pt", "tlm_config.json")
    return target == "base" or any((folder / name).is_file() for name in official)


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
    recipe: str | None = None,
    sigma: float | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of `target` on a manifest; greedy answers, one image at a time. `recipe`, `sigma`: as in `open_session`.

    `images`: only the first so many. `out`: the result as JSON. `answers`: every question, reference and answer as
    JSONL, to look at what went wrong. `grammar`: answers keep to the grammar of their task, as in a service.
    """
    for path in (out, answers):
        if path is not None:
            check_output(path, force)
    count = len(_selected(data, tasks, images))
    session = open_session(target, threads, grammar=grammar, recipe=recipe, sigma=sigma)
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
        settings = session.bundle.settings
        of = AnswersOf(
            target=str(target),
            precision=settings.precision,
            grammar=grammar,
            context_tokens=settings.context_tokens,
            data_sha256=str(result["data_sha256"]),
            inputs=session.bundle.manifest.inputs,
        )
        write_answers(answers, of, scored, force=force)
    if out is not None:
        with output_file(out, force=force) as work:
            work.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


# Answers as a file --------------------------------------------------------------------------------------------------


class AnswersOf(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """First line of the file: whose answers these are."""

    target: str
    precision: str
    grammar: bool
    context_tokens: int
    data_sha256: str
    inputs: dict[str, str]
    """What the target was made from, or its own files: name -> SHA-256."""


class _AnswerRow(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    task: str
    question: str
    reference: str
    said: str
    parsed: bool
    confidence: float


def write_answers(path: Path, of: AnswersOf, scored: Sequence[Scored], *, force: bool = False) -> None:
    """Whose they are, then every question, reference and answer as JSONL, in the order in which they were asked."""
    rows = [
        _AnswerRow(s.id, s.task, s.question, s.reference, s.said.text, s.said.ok, round(s.confidence, 4))
        for s in scored
    ]
    with output_file(path, force=force) as work:
        work.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in (of, *rows)))


def read_answers(path: Path, asked: Sequence[Triplet], data: Path) -> tuple[AnswersOf, list[Scored]]:
    """What `write_answers` wrote of the questions `asked` of the manifest `data`, the first of the file.

    DataError that names the line where it is of other questions, or cannot be read.
    """
    lines = path.read_bytes().splitlines()
    again = f"make it again with `fusar-edge eval CHECKPOINT --data {data} --answers {path}`"
    try:
        of = msgspec.json.decode(lines[0] if lines else b"", type=AnswersOf)
    except msgspec.MsgspecError as problem:
        raise DataError(f"{path}:1 does not say whose answers these are ({problem}): {again}") from None
    if of.data_sha256 != sha256_file(data):
        raise DataError(f"{path} holds answers to another manifest than {data}: {again}")
    if len(lines) - 1 < len(asked):
        raise DataError(f"{path} holds {len(lines) - 1} answers, {data} asks {len(asked)} questions: {again}")
    scored = []
    for number, (line, triplet) in enumerate(zip(lines[1:], asked, strict=False), 2):
        try:
            row = msgspec.json.decode(line, type=_AnswerRow)
        except msgspec.MsgspecError as problem:
            raise DataError(f"{path}:{number}: {problem}; {again}") from None
        if (row.task, row.question, row.reference) != (triplet.task, triplet.question, triplet.answer):
            what = f"{row.task}: {row.question[:60]!r}"
            raise DataError(f"{path}:{number} answers another question than {data} asks ({what}): {again}")
        said = parse_answer(row.task, row.said)
        scored.append(Scored(row.task, row.reference, said, row.confidence, row.id, row.question))
    return of, scored
