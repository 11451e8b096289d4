"""What a bundle has to show before it is published: INT8 beside FP32, on data that nothing was chosen with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.audit import audit
from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import Check, stage_checks, task_checks, verdict
from fusar_edge.calib.graphs import LISTING, SMOOTHING_LISTING, GraphFolder, open_graphs
from fusar_edge.calib.tiles.listing import check_disjoint, read_listing
from fusar_edge.calib.tiles.samples import SampleReader, spread
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.errors import DataError, InputError, MissingExtraError, RecipeError
from fusar_edge.eval.metrics import Scored, task_metrics
from fusar_edge.eval.run import Progress, ask_manifest, read_answers
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.backend import Backend, open_backend
from fusar_edge.runtime.bundle import DECODER, VISION, Bundle
from fusar_edge.runtime.session import Session
from fusar_edge.specs import CalibRecipe, GateSpec

STAGE_IMAGES = 32
"""Images at most on which stages and tokens are compared, one question each; the tasks are asked of all."""


BY_CALIBRATION = "measured when the graphs were calibrated, in ONNX Runtime"


@dataclass(frozen=True)
class ProofRequest:
    """Checked, so that a build does not find out after an hour what it lacks."""

    graphs: GraphFolder
    gate: GateSpec | None
    """None: the graphs are FP32, there is nothing to hold."""
    data: Path | None
    reference: GraphFolder | None
    """FP32 graphs, run beside the bundle."""
    answers: Path | None
    """Or what FP32 said elsewhere, where it does not fit here (`eval CHECKPOINT --answers`)."""
    images: int | None
    waiver: str | None
    wrong: tuple[str, ...] = ()
    """What `calib.audit` finds wrong in the graphs."""

    def first(self) -> list[Triplet]:
        """Records of the first `images` images that have a task: those that are asked."""
        assert self.data is not None
        rows = [triplet for triplet in read_triplets(self.data) if triplet.task]
        return [t for group in list(triplets_by_image(rows).values())[: self.images] for t in group]


def proof_request(
    graphs: GraphFolder,
    data: Path | None,
    reference: Path | None,
    images: int | None,
    waive: str | None,
    progress: Progress | None = None,
) -> ProofRequest:
    """InputError for what is missing or does not belong together; DataError where `data` was calibrated on.

    GateError, unless waived, where the graphs are not what `calibrate` writes: nothing needs to run to know that.
    """
    if data is None and (reference is not None or images is not None):
        raise InputError("--reference and --images say what to measure: give --data, the manifest to measure on")
    if waive is not None and not waive.strip():
        raise InputError("--waive is the reason why a bundle is built that did not pass the gate: say it in words")
    answers = reference if reference is not None and reference.is_file() else None
    base = None if reference is None or answers else open_graphs(reference, stages=("export",))
    if graphs.precision == "fp32":
        if waive is not None:
            raise InputError(f"--waive: the graphs of {graphs.path} are FP32, no gate is asked of them: leave it out")
        if answers is not None:
            raise InputError(f"--reference {answers}: the graphs of {graphs.path} are FP32 themselves: leave it out")
        return ProofRequest(graphs, None, data, base, None, images, None)
    if waive is None and (data is None or reference is None):
        raise InputError(
            f"the graphs of {graphs.path} are INT8, and a bundle of them shows that it keeps what FP32 can do: "
            "give --data MANIFEST (tiles that nothing was trained or calibrated on) and --reference, the FP32 folder "
            "or the answers that `fusar-edge eval CHECKPOINT --answers FILE` wrote elsewhere; or --waive REASON"
        )
    if base is not None and graphs.manifest.settings.get("streamed"):
        raise InputError(
            f"{graphs.path} was made by `export --int8`, which leaves no FP32 folder: give as --reference the answers "
            "that `fusar-edge eval CHECKPOINT --data MANIFEST --answers FILE` wrote on a machine that holds the model"
        )
    if find_spec("onnx") is None:
        raise MissingExtraError("`build` needs onnx, which is not installed: pip install 'fusar-edge[workshop]'")
    _check_disjoint(graphs, data, progress)
    request = ProofRequest(graphs, _gate(graphs), data, base, answers, images, waive, _audited(graphs, base))
    if answers is not None:
        assert data is not None
        _fp32_answers(request)  # a wrong file is told before anything long is done
    if request.wrong and waive is None:
        assert request.gate is not None
        verdict(_written(request), request.gate, None)
    return request


def _gate(graphs: GraphFolder) -> GateSpec:
    """Of the recipe that made the graphs."""
    try:
        return msgspec.toml.decode(graphs.manifest.recipe, type=CalibRecipe).gate
    except msgspec.MsgspecError as problem:
        raise RecipeError(f"{graphs.path}: the recipe in its manifest: {problem}; calibrate it again") from None


def _check_disjoint(graphs: GraphFolder, data: Path | None, progress: Progress | None) -> None:
    if LISTING not in graphs.manifest.files:
        raise InputError(f"{graphs.path} has no {LISTING}, the tiles that it was calibrated on: calibrate it again")
    for name in (LISTING, SMOOTHING_LISTING):
        if data is not None and name in graphs.manifest.files:
            step = None if progress is None else _told(progress, "no tile of the calibration set?")
            check_disjoint(read_listing(graphs.path / name), data, graphs.radiometry, step)


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(done, total, what)


def _audited(graphs: GraphFolder, reference: GraphFolder | None) -> tuple[str, ...]:
    if reference is None:
        return ()
    wrong = []
    for name in (VISION, DECODER):
        if graphs.manifest.inputs.get(name) != sha256_file(reference.path / name):
            raise InputError(
                f"{reference.path / name} is not what {graphs.path / name} was made from: give the FP32 folder that "
                "`fusar-edge calibrate` read"
            )
        figures = graphs.manifest.figures["graphs"][name]
        wrong += [f"{name}: {problem}" for problem in audit(graphs.path / name, reference.path / name, figures)]
    return tuple(wrong)


def proven(
    request: ProofRequest, bundle: Bundle, backend: Backend, threads: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Figures for the manifest: tasks, int8_vs_fp32, gate. GateError where the gate fails and nothing waives it."""
    if request.data is None:
        return {} if request.gate is None else {"gate": verdict([], request.gate, request.waiver)}
    data, checks = request.data, _written(request)
    answers = {bundle.settings.precision: _answers(bundle, backend, request, progress)}
    figures: dict[str, Any] = {}
    if request.reference is not None:
        base = _in_context(request.reference, bundle).bundle()
        fp32 = open_backend(base, threads)
        answers["fp32"] = _answers(base, fp32, request, progress)
        if request.gate is not None:
            reader = SampleReader(_in_context(request.graphs, bundle))
            stages = Reference(fp32, reader, spread(request.first(), STAGE_IMAGES)).compared(backend)
            figures["int8_vs_fp32"] = stages
            checks += stage_checks(stages, request.gate)
            checks += task_checks(answers[bundle.settings.precision], answers["fp32"], request.gate)
    if request.answers is not None:
        answers["fp32"] = _fp32_answers(request)
        figures["fp32_answers_sha256"] = sha256_file(request.answers)
        assert request.gate is not None
        checks.append(Check("graphs_as_written", 0, 0, None, "not audited: there are no FP32 graphs here", least=False))
        checks += stage_checks(request.graphs.manifest.figures["int8_vs_fp32"], request.gate, BY_CALIBRATION)
        checks += task_checks(answers[bundle.settings.precision], answers["fp32"], request.gate)
    figures["tasks"] = {"data": f"{data.parent.name}/{data.name}", "data_sha256": sha256_file(data)}
    figures["tasks"] |= {precision: task_metrics(scored) for precision, scored in answers.items()}
    if request.gate is not None:
        images = len({triplet.image for triplet in request.first()})
        figures["gate"] = verdict(checks, request.gate, request.waiver, images)
    return figures


MADE_FROM = ("base/", "adapter/", "checkpoint/", VISION, DECODER)
"""Names of inputs that tell one model from another."""


def _fp32_answers(request: ProofRequest) -> list[Scored]:
    """DataError where the answers are not those of the FP32 model that the graphs were made from."""
    assert request.answers is not None
    assert request.data is not None
    of, scored = read_answers(request.answers, request.first(), request.data)
    if of.precision != "fp32" or not of.grammar:
        grammar = "on" if of.grammar else "off"
        raise DataError(
            f"{request.answers} holds answers of {of.target} in {of.precision}, grammar {grammar}: "
            "the gate asks for those of FP32, with the grammar on (eval without --no-grammar)"
        )
    mine = request.graphs.manifest.inputs
    common = [name for name in of.inputs if name in mine and name.startswith(MADE_FROM)]
    other = [name for name in common if of.inputs[name] != mine[name]]
    if other or not common:
        why = f"another {other[0]}" if other else "no input in common"
        raise DataError(
            f"{request.answers} holds answers of {of.target}, which {request.graphs.path} was not made from ({why}): "
            "give those of its own checkpoint or FP32 bundle"
        )
    return scored


def _in_context(graphs: GraphFolder, bundle: Bundle) -> GraphFolder:
    """With as many rows of the cache as the bundle has: both sides are cut at the same token."""
    settings = msgspec.structs.replace(graphs.settings, context_tokens=bundle.settings.context_tokens)
    return dataclasses.replace(graphs, settings=settings)


def _written(request: ProofRequest) -> list[Check]:
    """Are the INT8 graphs what their manifest and FP32 say?"""
    if request.gate is None or request.reference is None:
        return []
    return [Check("graphs_as_written", len(request.wrong), 0, not request.wrong, "; ".join(request.wrong), least=False)]


def _answers(bundle: Bundle, backend: Backend, request: ProofRequest, progress: Progress | None) -> list[Scored]:
    assert request.data is not None
    label = bundle.settings.precision
    step = None if progress is None else lambda done, total, _: progress(done, total, label)
    return ask_manifest(Session(bundle, backend=backend), request.data, images=request.images, progress=step)
