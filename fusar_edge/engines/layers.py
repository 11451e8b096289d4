"""What a plan is made of: layers and kernels as the engine inspector tells them. Needs the GPU that the plan is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fusar_edge.runtime.trt_api import Listener, checked, constructed

INT8 = ("int8", "i8")


def layer_report(trt: Any, plan: bytes) -> str:
    """The inspector's JSON of a plan that was built with detailed profiling verbosity.

    Call it where `trt_api.driver_problem()` is None only: a Runtime without a driver is a segmentation fault.
    """
    runtime = constructed(trt.Runtime, "a TensorRT runtime", Listener(trt))
    engine = checked(runtime.deserialize_cuda_engine(plan), "an engine of the plan that was just built")
    inspector = checked(engine.create_engine_inspector(), "an engine inspector")
    return str(checked(inspector.get_engine_information(trt.LayerInformationFormat.JSON), "the engine's description"))


def layer_counts(report: str) -> dict[str, int]:
    """Layers of a report and those of them that read INT8, `{"layers": n, "int8_layers": m}`; {} for no valid JSON."""
    try:
        layers = json.loads(report).get("Layers", [])
    except ValueError:
        return {}
    return {"layers": len(layers), "int8_layers": sum(any(_is_int8(t) for t in _types(layer)) for layer in layers)}


def _types(layer: Any) -> Iterator[str]:
    """Types of a layer's inputs; a report of layer names alone has none."""
    if isinstance(layer, dict):
        yield from (
            str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))) for tensor in layer.get("Inputs", [])
        )


def _is_int8(said: str) -> bool:
    """`Int8`, or within a format such as `Row major linear Int8 format`, `Thirty-two wide channel ... INT8`."""
    return any(word in INT8 for word in said.lower().replace("/", " ").split())
