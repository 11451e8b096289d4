"""Part `engines`: TensorRT builds the graphs of part `graphs`; our runtime runs them against ONNX Runtime's outputs.

    int8       the INT8 graphs as `fusar-edge build` takes them: TensorRT 8.6 may use the types in the graph alone
    int8-half  the same, and FP16 allowed for every layer that is not quantised
    half       the FP32 graphs, FP16 allowed for every layer: what INT8 is compared with
FP16 for all of a trained vision tower is known to break it; on these random weights it says nothing but the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import old_python  # noqa: F401  first: fusar_edge needs its names
from measure import Case, compared, latencies, outputs, summary
from record import Record

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.engines.plans import Target, build_plans, open_target
from fusar_edge.errors import EdgeError
from fusar_edge.manifest import output_folder
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import Backend, open_backend
from fusar_edge.runtime.bundle import DECODER, TOKENIZER, Bundle, open_bundle, seal_bundle
from fusar_edge.runtime.trt_api import device_facts, is_strongly_typed, open_tensorrt
from fusar_edge.specs import EngineSpec

VARIANTS = {"int8": ("int8", False), "int8-half": ("int8", True), "half": ("fp32", True)}
"""Variant -> graphs, and whether every layer may be FP16."""
Build = Callable[[str, bool, Path], dict[str, Any]]


def spec_here() -> EngineSpec:
    """h200.toml for whichever GPU is here; a short cache and one image at a time keep builds short."""
    spec, _ = load_recipe("engines", "h200", EngineSpec)
    here = {"name": "session", "compute_capability": device_facts().compute_capability}
    return msgspec.structs.replace(spec, **here, cache_tokens=1024, vision_batch=1, workspace_mib=8192)


def allow_half(trt: Any) -> Callable[[Any], None]:
    """A change of the builder's configuration, for TensorRT 8.6; later networks keep to the types of their graph."""
    if is_strongly_typed(trt):
        raise EdgeError(f"TensorRT {trt.__version__} has no such choice: measure the variant int8 alone with it")
    return lambda config: config.set_flag(trt.BuilderFlag.FP16)


def build(work: Path, name: str, variant: str, out: Path) -> dict[str, Any]:
    """A sealed TensorRT bundle `out` of one variant; returns the figures of its plans."""
    precision, half = VARIANTS[variant]
    graphs, spec = open_graphs(work / f"{name}-{precision}"), spec_here()
    target = open_target(spec)
    if half:
        target = Target(target.trt, target.facts, allow_half(target.trt))
    facts = {"engine": "tensorrt", "context_tokens": spec.cache_tokens, "plan": target.plan_facts(spec)}
    settings = msgspec.structs.replace(graphs.settings, **facts)
    with output_folder(out, force=True) as folder:
        figures = build_plans(target, graphs, settings, spec, folder, work / "timing" / variant)
        (folder / TOKENIZER).write_bytes((graphs.path / TOKENIZER).read_bytes())
        seal_bundle(folder, settings, figures=figures)
    return {"plans": figures}


def measured(
    bundle: Bundle, work: Path, name: str, variant: str, bandwidth_gb_s: float | None, seconds: float, opened: Backend
) -> dict[str, Any]:
    """Outputs against ONNX Runtime's of the same graphs and of FP32, latencies, share of the memory's bandwidth."""
    references = {p: dict(np.load(work / f"{name}-{p}.npz")) for p in ("fp32", "int8")}
    case = Case(bundle.settings)
    found = outputs(opened, bundle.settings, case, references["fp32"]["visual_tokens"])
    taken = latencies(opened, bundle.settings, case, seconds)
    parts = {part: taken.pop(part) for part in ("vision", "prefill", "decode")}
    figures = {
        "against": VARIANTS[variant][0],
        "outputs": compared(found, references[VARIANTS[variant][0]]),
        "outputs_vs_fp32": compared(found, references["fp32"]),
        "ms": {part: summary(values) for part, values in parts.items()},
        **taken,
    }
    if bandwidth_gb_s:
        figures["decode_floor"] = floor(bundle, work, name, variant, figures, bandwidth_gb_s)
    return figures | {"observations_ms": parts}


def floor(
    bundle: Bundle, work: Path, name: str, variant: str, figures: dict[str, Any], bandwidth_gb_s: float
) -> dict[str, float]:
    """What a decode step must read, over the measured copy bandwidth, and the share of that in the time it took.

    Weights in the type that the variant allows at the smallest: float32 counts half where FP16 is allowed.
    """
    precision, half = VARIANTS[variant]
    weights = json.loads((work / f"{name}.json").read_text())[f"bytes_{precision}"][DECODER]
    nbytes = sum(n / 2 if half and kind == "float32" else n for kind, n in weights.items())
    s = bundle.settings
    cached = figures["cached_tokens"] * s.layers * 2 * s.kv_heads * s.head_dim * 4  # float32, as the graphs have it
    ms = (nbytes + cached) / bandwidth_gb_s / 1e6
    return {
        "bytes": nbytes + cached,
        "copy_gb_s": bandwidth_gb_s,
        "ms": ms,
        "share": ms / figures["ms"]["decode"]["p50"],
    }


def dry_backend(work: Path, name: str, variant: str, out: Path) -> tuple[Bundle, Backend]:
    """The runtime over the NumPy device and the tests' stand-in of TensorRT, which runs the graph itself."""
    from fusar_edge.runtime.device_numpy import NumpyDevice
    from fusar_edge.runtime.trt import TrtBackend
    from tests.runtime.fake_tensorrt import FakeTensorrt, write_trt_bundle

    graphs = open_graphs(work / f"{name}-{VARIANTS[variant][0]}")
    shutil.rmtree(out, ignore_errors=True)
    bundle = write_trt_bundle(out, graphs.bundle(), prefill_tokens=256)
    device = NumpyDevice()
    return bundle, TrtBackend(bundle, FakeTensorrt(device), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="that of part `graphs`; bundles go there too")
    parser.add_argument("--models", nargs="+", default=["tiny", "3b", "7b"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--dry-run", action="store_true", help="NumPy device and stand-in of TensorRT")
    given = parser.parse_args()
    bandwidth = copy_bandwidth(given.work)
    record = Record("engines", given.out, copy_gb_s=bandwidth, **({} if given.dry_run else tensorrt_facts()))
    for name in given.models:
        for variant in given.variants:
            one(record, given, name, variant, bandwidth)


def one(record: Record, given: argparse.Namespace, name: str, variant: str, bandwidth: float | None) -> None:
    entry, out = f"{name}_{variant}", given.work / f"{name}-{variant}.bundle"
    if given.dry_run:
        bundle, backend = dry_backend(given.work, name, variant, out)
    else:
        if not out.is_dir() and not record.run(entry, lambda: build(given.work, name, variant, out)):
            return
        bundle = open_bundle(out)
        try:
            backend = open_backend(bundle)
        except Exception as problem:
            record.put(entry, error=f"{type(problem).__name__}: {problem}")
            return
    seconds = 0.05 if given.dry_run else 3.0
    record.run(entry, lambda: measured(bundle, given.work, name, variant, bandwidth, seconds, backend))
    backend.close()  # type: ignore[attr-defined]  # TensorRT's has it; the Protocol does not ask for it


def copy_bandwidth(work: Path) -> float | None:
    """What part `device` measured, in this call or an earlier one on this machine; else none."""
    path = work / "device.json"
    entries = json.loads(path.read_text())["entries"] if path.is_file() else {}
    found = entries.get("copy_bandwidth", {}).get("gb_s")
    return None if found is None else float(found)


def tensorrt_facts() -> dict[str, Any]:
    return {"tensorrt": str(open_tensorrt().__version__), "gpu": device_facts().name}


if __name__ == "__main__":
    main()
