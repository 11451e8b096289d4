"""What an INT8 pair of graphs is made of: products not in INT8 with their reasons, work, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusar_edge.calib.products.lint import Finding, lint
from fusar_edge.calib.products.macs import (
    counted,
    decoder_dims,
    int8_share,
    node_macs,
    stored_bytes,
    tile_share,
    vision_dims,
)
from fusar_edge.errors import GateError
from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings

if TYPE_CHECKING:
    from onnx import ModelProto

SMALL = 1 << 20
"""Elements of a constant whose values may matter."""
QUESTION_TOKENS, ANSWER_TOKENS = 40, 16
"""Beside the image's: what a tile's share is counted for."""
MOST_BYTES = 1.1
"""Of a quantised parameter, with its scales and outliers."""


def int8_summary(folder: Path, settings: BundleSettings, kept: Mapping[str, str]) -> dict[str, Any]:
    """Figures of vision.onnx and decoder.onnx in `folder`; `kept`: layer -> why it is not quantised.

    GateError where a file is larger than INT8 weights explain.
    """
    models = {name: without_large(folder / name) for name in (VISION, DECODER)}
    prompt = settings.cells**2 + QUESTION_TOKENS
    sizes = {
        "vision": (VISION, vision_dims(settings)),
        "prefill": (DECODER, decoder_dims(settings, prompt, 0)),
        "step": (DECODER, decoder_dims(settings, 1, prompt)),
    }
    findings = {name: lint(model, kept) for name, model in models.items()}
    shares = {
        part: int8_share(counted(findings[graph], node_macs(models[graph], dims)))
        for part, (graph, dims) in sizes.items()
    }
    both = [finding for found in findings.values() for finding in found]
    shares["tile"] = tile_share(settings, models[VISION], models[DECODER], both, prompt, ANSWER_TOKENS)
    return {
        "int8_macs": {part: {k: round(v, 4) for k, v in share.items()} for part, share in shares.items()},
        "macs_counted_for": {"prompt_tokens": prompt, "answer_tokens": ANSWER_TOKENS},
        "not_int8": {finding.name: finding.reason for finding in both if not finding.int8},
        "stored": {name: _stored(folder / name) for name in (VISION, DECODER)},
    }


def without_large(path: Path) -> ModelProto:
    """A graph with its scales, zero points and biases; a weight has its shape alone: 8 GB of a 7B model stay unread."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and math.prod(tensor.dims) <= SMALL:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def _stored(path: Path) -> dict[str, Any]:
    stored = stored_bytes(path)
    each = stored.bytes_per_quantised_parameter
    weights = stored.codes + stored.scales + stored.outliers
    if weights > MOST_BYTES * stored.parameters:
        raise GateError(
            f"the INT8 weights of {path.name} take {weights / stored.parameters:.3f} bytes for each parameter; at most "
            f"{MOST_BYTES} is allowed: codes {stored.codes}, scales {stored.scales}, outliers {stored.outliers} bytes; "
            "lower `share` in [outliers]"
        )
    floats = sum(stored.floating.values())
    return {
        "bytes": stored.total,
        "floating": floats,
        "parameters_int8": stored.parameters,
        "bytes_each": round(each, 4),
    }


def linted(folder: Path, kept: Mapping[str, str], settings: BundleSettings, compiled: bool) -> dict[str, list[Finding]]:
    """Every product of both graphs, with its work (of the decoder: of the prompt).

    `compiled`: TensorRT-RTX builds them first, and has the last word.
    """
    found = {}
    dims = {VISION: vision_dims(settings), DECODER: decoder_dims(settings, settings.cells**2 + QUESTION_TOKENS, 0)}
    for name in (VISION, DECODER):
        engine = None
        if compiled:
            from fusar_edge.engines.compile_gate import compiled as built
            from fusar_edge.engines.profiles import decoder_profiles, vision_profiles

            profiles = vision_profiles(settings, 1) if name == VISION else decoder_profiles(settings, 512, 1024)
            engine = built(folder / name, profiles).kernels
        model = without_large(folder / name)
        found[name] = counted(lint(model, kept, engine), node_macs(model, dims[name]))
    return found
