"""SmoothQuant on the PyTorch model, before export: factors by channel that make activations easy to quantise.

s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) over channel j (Xiao et al., ICML 2023, equation 4), folded at each seam
(module `seams`). Alpha is searched for each seam: the one whose INT8 product, with the recipe's own ranges, is
nearest to the float product on rows of real activations; none at all where no factor helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.qdq import int8_weight
from fusar_edge.calib.ranges import AbsoluteHistogram
from fusar_edge.calib.smoothquant.seams import Seam, fold, seams, untie_head
from fusar_edge.calib.tiles.samples import SampleReader, vision_tokens
from fusar_edge.data.triplets import Triplet
from fusar_edge.errors import DataError, RecipeError
from fusar_edge.eval.checkpoint_session import TorchBackend
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.specs import RangeSpec, SmoothSpec

Progress = Callable[[int, int], None]
FLOOR = 1e-5
"""Least |x| and |w| of a channel in the formula: a dead channel keeps a finite factor."""
PER_CALL = 64
"""Rows at most that one run of the model adds: the one with the largest value, and others at random."""


VALUES, LEAST_ROWS = 1 << 23, 256
"""Numbers that are kept of a seam, 32 MiB: of a wide one fewer rows than the recipe says, but so many."""
OUTPUTS = 1024
"""Output channels of a reader on which its error is measured, evenly spaced: the search costs as much as the model's
own run otherwise (at 7B a layer would take 15 TFLOP)."""


@dataclass(frozen=True)
class Smoothed:
    """What was done at one seam."""

    alpha: float | None
    """None: left as it is."""
    error_before: float
    """Squared error of the INT8 product over the squared product, all readers together."""
    error_after: float


class Rows:
    """Real activations of one seam: the largest |x| of each channel, and some rows."""

    def __init__(self, seam: Seam, limit: int, seed: int) -> None:
        width = len(seam.group)
        self.seam, self.rng = seam, np.random.default_rng(seed)
        self.limit = min(limit, max(LEAST_ROWS, VALUES // width))
        self.largest = torch.zeros(len(seam.group))
        self.highest, self.others = torch.zeros(0, len(seam.group)), torch.zeros(0, len(seam.group))

    def hook(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
        if not torch.isfinite(x).all():
            raise DataError(f"the input of {self.seam.name} is not finite on a calibration input; check the checkpoint")
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        order = x.abs().amax(1).argsort(descending=True)
        self.highest = torch.cat([self.highest, x[order[:1]]])
        few = self.rng.permutation(len(x) - 1)[: PER_CALL - 1] if len(x) > 1 else np.zeros(0, np.int64)
        self.others = torch.cat([self.others, x[order[1:]][torch.from_numpy(few)]])
        self._thin()

    def _thin(self) -> None:
        """Memory is bounded however many tiles there are: of the highest rows the highest, of the others any."""
        most = max(1, self.limit // 4)
        if len(self.highest) > 2 * most:
            order = self.highest.abs().amax(1).argsort(descending=True)
            self.highest = self.highest[order[:most]]
        if len(self.others) > 2 * self.limit:
            self.others = self.others[torch.from_numpy(self.rng.permutation(len(self.others))[: self.limit])]

    def rows(self) -> Tensor:
        """[rows, K], at most `limit`."""
        most = max(1, self.limit // 4)
        highest = self.highest[self.highest.abs().amax(1).argsort(descending=True)[:most]]
        few = self.rng.permutation(len(self.others))[: self.limit - len(highest)]
        return torch.cat([highest, self.others[torch.from_numpy(few)]])


def smooth(
    model: FusarForConditionalGeneration,
    graphs: GraphFolder,
    samples: list[Triplet],
    spec: SmoothSpec,
    ranges: RangeSpec,
    progress: Progress | None = None,
) -> dict[str, Smoothed]:
    """Fold factors into `model` (float32, eval mode), in place; name of each seam -> what was done.

    `graphs`: settings and tokenizer of the checkpoint, for the prompts. `progress(done, total)` counts images, then
    seams. RecipeError where a pattern names no linear that can be smoothed; DataError for activations that are not
    finite.
    """
    chosen = chosen_seams(list(seams(model)), spec)
    if any("decoder.lm_head" in seam.readers for seam in chosen):
        untie_head(model)
    total = len(samples) + len(chosen)
    held = _activations(model, graphs, samples, chosen, spec, lambda done: progress and progress(done, total))
    report = {}
    for number, rows in enumerate(in_order(held), 1):
        report[rows.seam.name], factors = best(rows.seam, rows, spec, ranges)
        if factors is not None:
            fold(rows.seam, factors)
        if progress:
            progress(len(samples) + number, total)
    return {seam.name: report[seam.name] for seam in chosen}


def in_order(held: Iterable[Rows]) -> list[Rows]:
    """First the seams that a linear makes: they change rows of weights that the seams of norms weigh."""
    return sorted(held, key=lambda rows: not isinstance(rows.seam.maker.module, nn.Linear))


def chosen_seams(found: list[Seam], spec: SmoothSpec) -> list[Seam]:
    """Those that the recipe names. RecipeError for a pattern that names no linear which can be smoothed."""
    names = [name for seam in found for name in seam.readers]
    for pattern in spec.linears:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"[smooth] linears: {pattern!r} names no linear that can be smoothed; there are: "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in names}))} (layer names as in the graphs)"
            )
    return [s for s in found if any(fnmatchcase(name, p) for name in s.readers for p in spec.linears)]


def _activations(
    model: FusarForConditionalGeneration,
    graphs: GraphFolder,
    samples: Iterable[Triplet],
    chosen: list[Seam],
    spec: SmoothSpec,
    done: Callable[[int], Any],
) -> list[Rows]:
    """The model looks at each tile, with and without its anchors, and is fed question and reference answer."""
    reader, backend = SampleReader(graphs), TorchBackend(model)
    held = [Rows(seam, spec.rows, seed) for seed, seam in enumerate(chosen)]
    hooks = [
        next(iter(seam.readers.values())).register_forward_pre_hook(rows.hook)
        for seam, rows in zip(chosen, held, strict=True)
    ]
    try:
        for number, sample in enumerate(samples, 1):
            for feed in reader.vision_feeds(sample):
                visual = vision_tokens(backend, feed)
            cache = backend.new_cache(reader.settings.context_tokens)
            for step in reader.steps(sample):  # on the last feed, the image as deployed
                backend.step(cache, step.input_ids, visual, step.visual_index, step.position_ids)
            done(number)
    finally:
        for hook in hooks:
            hook.remove()
    return held


def best(seam: Seam, held: Rows, spec: SmoothSpec, ranges: RangeSpec) -> tuple[Smoothed, Tensor | None]:
    """What is best done at a seam, and its factors; None: nothing is."""
    x = held.rows()
    weights = [linear.weight.detach().float() for linear in seam.readers.values()]
    few = [_some(weight) for weight in weights]
    before = product_error(x, few, ranges)
    chosen: tuple[float, float | None, Tensor | None] = (before, None, None)
    for alpha in spec.alphas:
        factors = smoothing_factors(seam, held.largest, weights, alpha)
        scale = factors[seam.group]
        error = product_error(x / scale, [w * scale for w in few], ranges)
        if error < chosen[0]:
            chosen = (error, alpha, factors)
    return Smoothed(chosen[1], before, chosen[0]), chosen[2]


def _some(weight: Tensor) -> Tensor:
    """[out, K] -> at most OUTPUTS of its rows."""
    if len(weight) <= OUTPUTS:
        return weight
    return weight[torch.linspace(0, len(weight) - 1, OUTPUTS).round().long()]


def smoothing_factors(seam: Seam, largest: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """[F], geometric mean 1: the scale of a tensor as a whole is taken up by its INT8 range."""
    x = _by_group(largest, seam).clamp(min=FLOOR)
    w = _by_group(torch.stack([weight.abs().amax(0) for weight in weights]).amax(0), seam).clamp(min=FLOOR)
    factors = x**alpha / w ** (1 - alpha)
    return factors / factors.log().mean().exp()


def _by_group(values: Tensor, seam: Seam) -> Tensor:
    return torch.zeros(seam.factors).scatter_reduce(0, seam.group, values, "amax")


def product_error(x: Tensor, weights: list[Tensor], ranges: RangeSpec) -> float:
    """Squared error of INT8 x W^T against float, over the squared float product. x [rows, K], W [out, K]."""
    histogram = AbsoluteHistogram()
    histogram.add(x.numpy())
    largest = histogram.range(ranges)
    if not largest:
        return 0.0
    step = largest / 127
    rounded = torch.clamp(torch.round(x / step), -128, 127) * step
    wrong = exact = 0.0
    for weight in weights:
        true = x @ weight.T
        wrong += float((rounded @ torch.from_numpy(_faked(weight.numpy())).T - true).square().sum(dtype=torch.float64))
        exact += float(true.square().sum(dtype=torch.float64))
    return wrong / exact if exact else 0.0


def _faked(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    codes, scale = int8_weight(weight, 0)
    return codes.astype(np.float32) * scale[:, None]
