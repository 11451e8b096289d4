"""Equality, measured: the graphs in PyTorch against Hugging Face's modules, the files against the graphs in PyTorch.

Decoding is teacher-forced and rolled out as the runtime does it: a prompt with an empty cache, or the image's part
first and the question on top of it, then token by token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.anchors.codes import BANDS
from fusar_edge.errors import GateError
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.speckle import speckled
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.vision import hf_patches_from_grey
from fusar_edge.runtime.positions import mrope_positions
from fusar_edge.specs import ExportSpec

Array = npt.NDArray[Any]
Values = dict[str, Array]
Run = Callable[[Values], Values]
"""One of the graphs, in PyTorch or ONNX Runtime: inputs by name -> outputs by name."""

BEFORE, AFTER, STEPS = 5, 11, 8
"""Text tokens before and after the image, and tokens decoded one by one."""

VISION_OUTPUTS = ("visual_tokens",)
DECODER_OUTPUTS = ("logits", "next_ids", "new")


@dataclass(frozen=True)
class Sample:
    """Inputs of both graphs for a batch of images, each with a prompt and the answer that is forced."""

    vision: Values
    input_ids: Array
    """[B, prompt + STEPS] int32."""
    visual_index: Array
    """[B, prompt + STEPS] int32."""
    position_ids: Array
    """[3, B, prompt + STEPS] int32."""
    prompt: int
    prefix: int
    """Tokens up to the end of the image."""


def sample(model: FusarForConditionalGeneration, batch: int, seed: int = 0, bands: int = BANDS) -> Sample:
    """Speckled images, half of their anchors masked, and random text around them. `bands`: width of an anchor."""
    rng = np.random.default_rng(seed)
    config, cells = model.config, model.cells
    nodes = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    vectors = rng.normal(size=(batch, len(nodes), bands))
    vision = {
        "pixels": speckled(rng, batch, config.fusar["image_size"]),
        "anchors": (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32),
        "anchor_positions": np.tile(nodes, (batch, 1, 1)).astype(np.float32),
        "anchor_mask": (rng.random((batch, len(nodes))) < 0.5).astype(np.float32),
    }
    special = (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id)
    image = cells * cells
    ids = rng.integers(0, min(special), (batch, BEFORE + image + AFTER + STEPS))
    ids[:, BEFORE - 1] = config.vision_start_token_id
    ids[:, BEFORE : BEFORE + image] = config.image_token_id
    ids[:, BEFORE + image] = config.vision_end_token_id
    index = np.full(ids.shape, -1)
    index[:, BEFORE : BEFORE + image] = np.arange(image)
    positions = np.repeat(mrope_positions(BEFORE, cells, AFTER + STEPS)[:, None], batch, axis=1)
    return Sample(
        vision=vision,
        input_ids=ids.astype(np.int32),
        visual_index=index.astype(np.int32),
        position_ids=positions.astype(np.int32),
        prompt=BEFORE + image + AFTER,
        prefix=BEFORE + image,
    )


def run_from_module(module: nn.Module, outputs: tuple[str, ...]) -> Run:
    """A graph in PyTorch."""

    def run(values: Values) -> Values:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(value) for name, value in values.items()})
        found = (found,) if isinstance(found, torch.Tensor) else found
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return run


def run_from_file(path: Path) -> Run:
    """A graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    return lambda values: dict(zip(outputs, session.run(outputs, values), strict=True))


def rollout(
    decoder: Run, visual_tokens: Array, given: Sample, cache_row: tuple[int, ...], *, reuse: bool
) -> list[Values]:
    """Outputs of each run over the prompt (two runs where the image's part is reused) and the forced answer."""
    past = np.zeros((0, *cache_row), np.float32)
    edges = [0, *([given.prefix] if reuse else []), *range(given.prompt, given.input_ids.shape[1] + 1)]
    outputs = []
    for start, stop in itertools.pairwise(edges):
        values = {
            "input_ids": given.input_ids[:, start:stop],
            "visual_tokens": visual_tokens,
            "visual_index": given.visual_index[:, start:stop],
            "position_ids": given.position_ids[:, :, start:stop],
            "past": past,
        }
        outputs.append(decoder({name: np.ascontiguousarray(value) for name, value in values.items()}))
        past = np.concatenate([past, outputs[-1]["new"]])
    return outputs


class Gate:
    """Compares outputs, keeps the worst figures by name, and stops at the first beyond its bound."""

    def __init__(self, spec: ExportSpec, between: str) -> None:
        self.spec, self.between = spec, between
        self.figures: dict[str, dict[str, float]] = {}

    def check(self, output: str, reference: Array, measured: Array) -> None:
        """GateError that names output, figure and bound. Sizes must agree."""
        assert reference.shape == measured.shape, f"{output}: {reference.shape} and {measured.shape}"
        a, b = reference.astype(np.float64).ravel(), measured.astype(np.float64).ravel()
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        same = norms == (0.0, 0.0)
        with np.errstate(all="ignore"):
            cosine = 1.0 if same else float(np.clip(np.float64(a @ b) / (norms[0] * norms[1]), -1, 1))
            ratio = 1.0 if same else float(np.float64(norms[1]) / norms[0])
        worst = self.figures.setdefault(output, {"cosine": 1.0, "norm_ratio": 1.0, "max_abs": 0.0})
        worst["cosine"] = min(worst["cosine"], cosine)
        worst["norm_ratio"] = max(worst["norm_ratio"], ratio, key=lambda r: abs(r - 1))
        worst["max_abs"] = max(worst["max_abs"], float(np.abs(a - b).max(initial=0.0)))
        if not cosine >= self.spec.cosine:
            self._stop(output, f"cosine {cosine:.6f} is below {self.spec.cosine}")
        if not abs(ratio - 1) <= self.spec.norm_ratio:
            self._stop(output, f"ratio of norms {ratio:.6f} is farther from 1 than {self.spec.norm_ratio}")

    def check_tokens(self, reference_logits: Array, next_ids: Array) -> None:
        """The chosen tokens must be those of the reference; a tie to 1e-4 of the logits' range is no difference."""
        best, least = reference_logits.max(-1), reference_logits.min(-1)
        chosen = np.take_along_axis(reference_logits, next_ids[:, None].astype(np.int64), axis=-1)[:, 0]
        agree = float((chosen >= best - 1e-4 * (best - least)).mean())
        worst = self.figures.setdefault("decoder.next_ids", {"agreement": 1.0})
        worst["agreement"] = min(worst["agreement"], agree)
        if agree < 1:
            self._stop("decoder.next_ids", f"token agreement {agree:.3f} is below 1")

    def _stop(self, output: str, problem: str) -> None:
        raise GateError(f"{output}, {self.between}: {problem}; nothing was written")


def check_against_hugging_face(
    model: FusarForConditionalGeneration, vision: VisionGraph, decoder: DecoderGraph, spec: ExportSpec
) -> dict[str, dict[str, float]]:
    """Figures of our graphs in PyTorch against `model.visual` and a full forward with Hugging Face's own positions."""
    gate = Gate(spec, "PyTorch against Hugging Face")
    given = sample(model, 2, bands=vision.bands)
    ids = torch.from_numpy(given.input_ids).long()
    pixels = torch.from_numpy(given.vision["pixels"])
    patches, grid = hf_patches_from_grey(pixels)
    with torch.no_grad():
        tokens = model.model.visual(patches, grid).reshape(2, -1, model.config.text_config.hidden_size).numpy()
        model.model.rope_deltas = None
        whole = Qwen2_5_VLForConditionalGeneration.forward(
            model, input_ids=ids, pixel_values=patches, image_grid_thw=grid, use_cache=False
        ).logits.numpy()
    ours = run_from_module(vision, VISION_OUTPUTS)(
        given.vision | {"anchor_mask": np.zeros_like(given.vision["anchor_mask"])}
    )
    gate.check("vision.visual_tokens", tokens, ours["visual_tokens"])
    run = run_from_module(decoder, DECODER_OUTPUTS)
    steps = rollout(run, ours["visual_tokens"], given, decoder.cache_row(2), reuse=False)
    for step, outputs in enumerate(steps):
        reference = whole[:, given.prompt - 1 + step]
        gate.check("decoder.logits", reference, outputs["logits"])
        gate.check_tokens(reference, outputs["next_ids"])
    return gate.figures


def check_files(
    model: FusarForConditionalGeneration, vision: VisionGraph, decoder: DecoderGraph, folder: Path, spec: ExportSpec
) -> dict[str, dict[str, float]]:
    """Figures of vision.onnx and decoder.onnx in ONNX Runtime against the same graphs in PyTorch, batch 1 and 2."""
    gate = Gate(spec, "ONNX Runtime against PyTorch")
    in_torch = run_from_module(vision, VISION_OUTPUTS), run_from_module(decoder, DECODER_OUTPUTS)
    in_ort = run_from_file(folder / "vision.onnx"), run_from_file(folder / "decoder.onnx")
    for batch, reuse in ((1, False), (2, True)):
        given = sample(model, batch, seed=batch, bands=vision.bands)
        tokens, measured = (run(given.vision)["visual_tokens"] for run in (in_torch[0], in_ort[0]))
        gate.check("vision.visual_tokens", tokens, measured)
        rolls = [rollout(r, tokens, given, decoder.cache_row(batch), reuse=reuse) for r in (in_torch[1], in_ort[1])]
        for reference, outputs in zip(*rolls, strict=True):
            gate.check("decoder.logits", reference["logits"], outputs["logits"])
            gate.check("decoder.new", reference["new"], outputs["new"])
            gate.check_tokens(reference["logits"], outputs["next_ids"])
    return gate.figures


def check_fold(model: FusarForConditionalGeneration, fold: Callable[[], None], spec: ExportSpec) -> dict[str, Any]:
    """Figures of Hugging Face's own forward after `fold` changed the weights, against before. GateError beyond bounds.

    The model is compared as a whole: logits of every position, and the tower's tokens.
    """
    gate = Gate(spec, "folded against unfolded")
    given = sample(model, 1)
    pixels = torch.from_numpy(given.vision["pixels"])
    patches, grid = hf_patches_from_grey(pixels)

    def outputs() -> tuple[Array, Array]:
        with torch.no_grad():
            model.model.rope_deltas = None
            ids = torch.from_numpy(given.input_ids).long()
            logits = Qwen2_5_VLForConditionalGeneration.forward(
                model, input_ids=ids, pixel_values=patches, image_grid_thw=grid, use_cache=False
            ).logits.numpy()
            return model.model.visual(patches, grid).numpy(), logits

    before = outputs()
    fold()
    for name, reference, measured in zip(("vision.visual_tokens", "decoder.logits"), before, outputs(), strict=True):
        gate.check(name, reference, measured)
    return gate.figures
