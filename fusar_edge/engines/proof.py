"""What a bundle has to show before it is published: INT8 beside FP32, on data that nothing was chosen with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.audit import audit
from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import Check, stage_checks, task_checks, verdict
from fusar_edge.calib.graphs import LISTING, SMOOTHING_LISTING, GraphFolder, open_graphs
from fusar_edge.calib.tiles.listing import check_disjoint, read_listing
from fusar_edge.calib.tiles.samples import SampleReader, some_samples
from fusar_edge.errors import InputError, RecipeError
from fusar_edge.eval.metrics import Scored, task_metrics
from fusar_edge.eval.run import Progress, ask_manifest
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.backend import Backend, open_backend
from fusar_edge.runtime.bundle import DECODER, VISION, Bundle
from fusar_edge.runtime.session import Session
from fusar_edge.specs import CalibRecipe, GateSpec

STAGE_IMAGES = 32
"""Images at most on which stages and tokens are compared, one question each; the tasks are asked of all."""


@dataclass(frozen=True)
class ProofRequest:
    """Checked, so that a build does not find out after an hour what it lacks."""

    graphs: GraphFolder
    gate: GateSpec | None
    """None: the graphs are FP32, there is nothing to hold."""
    data: Path | None
    reference: GraphFolder | None
    images: int | None
    waiver: str | None
    wrong: tuple[str, ...] = field(default=())
    """What `calib.audit` finds wrong in the graphs."""


def proof_request(
    graphs: GraphFolder, data: Path | None, reference: Path | None, images: int | None, waive: str | None
) -> ProofRequest:
    """InputError for what is missing or does not belong together; DataError where `data` was calibrated on."""
    if data is None and (reference is not None or images is not None):
        raise InputError("--reference and --images say what to measure: give --data, the manifest to measure on")
    if waive is not None and not waive.strip():
        raise InputError("--waive is the reason why a bundle is built that did not pass the gate: say it in words")
    base = None if reference is None else open_graphs(reference, stages=("export",))
    if graphs.precision == "fp32":
        if waive is not None:
            raise InputError(f"--waive: the graphs of {graphs.path} are FP32, no gate is asked of them: leave it out")
        return ProofRequest(graphs, None, data, base, images, None)
    if waive is None and (data is None or base is None):
        raise InputError(
            f"the graphs of {graphs.path} are INT8, and a bundle of them shows that it keeps what FP32 can do: "
            "give --data MANIFEST (tiles that nothing was trained or calibrated on) and --reference FP32; or --waive "
            "REASON"
        )
    _check_disjoint(graphs, data)
    return ProofRequest(graphs, _gate(graphs), data, base, images, waive, _audited(graphs, base))


def _gate(graphs: GraphFolder) -> GateSpec:
    """Of the recipe that made the graphs."""
    try:
        return msgspec.toml.decode(graphs.manifest.recipe, type=CalibRecipe).gate
    except msgspec.MsgspecError as problem:
        raise RecipeError(f"{graphs.path}: the recipe in its manifest: {problem}; calibrate it again") from None


def _check_disjoint(graphs: GraphFolder, data: Path | None) -> None:
    listings = [path for name in (LISTING, SMOOTHING_LISTING) if (path := graphs.path / name).is_file()]
    if data is not None:
        for path in listings:
            check_disjoint(read_listing(path), data, graphs.radiometry)


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
        ranges = graphs.manifest.figures["graphs"][name]["ranges"]
        wrong += [f"{name}: {problem}" for problem in audit(graphs.path / name, reference.path / name, ranges)]
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
        base = request.reference.bundle()
        fp32 = open_backend(base, threads)
        answers["fp32"] = _answers(base, fp32, request, progress)
        if request.gate is not None:
            questions = some_samples([data], min(STAGE_IMAGES, request.images or STAGE_IMAGES))
            stages = Reference(fp32, SampleReader(request.graphs), questions).compared(backend)
            figures["int8_vs_fp32"] = stages
            checks += stage_checks(stages, request.gate)
            checks += task_checks(answers[bundle.settings.precision], answers["fp32"], request.gate)
    figures["tasks"] = {"data": f"{data.parent.name}/{data.name}", "data_sha256": sha256_file(data)}
    figures["tasks"] |= {precision: task_metrics(scored) for precision, scored in answers.items()}
    if request.gate is not None:
        figures["gate"] = verdict(checks, request.gate, request.waiver)
    return figures


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
