"""How far a baked anchor is from the exact TLM, measured on places that the basis never saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fusar_edge.anchors.grid import grid_positions
from fusar_edge.export.baking.basis import Basis, Fit, outputs_of, rounded
from fusar_edge.export.baking.projector import Projector
from fusar_edge.export.speckle import speckled
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.tlm import BakedModulation

Floats = npt.NDArray[np.float32]


def measured_error(mlp: Any, basis: Basis, projector: Projector, vectors: Floats) -> dict[str, Any]:
    """Error of the int8 coefficients on places [S, 64], each as a share.

    tokens: of the modulated tokens (gamma weighted by their RMS); gamma, beta, both: plain. `vs_constant` has 1 for the
    basis' mean alone (0 where f is constant), `vs_size` is relative to |f|. `worst`: the worst place's error in
    `tokens`, over the RMS of all places' distance from the mean.
    """
    half, plain = len(basis.mean) // 2, np.ones(1, np.float32)
    parts: dict[str, tuple[slice, Floats]] = {
        "tokens": (slice(None), basis.weight),
        "gamma": (slice(half), plain),
        "beta": (slice(half, None), plain),
        "both": (slice(None), plain),
    }
    sums = {name: np.zeros(3) for name in parts}
    worst, done = 0.0, 0
    for exact in (batch.cpu().numpy() for batch in outputs_of(mlp, vectors)):
        low = basis.outputs(projector.coefficients(vectors[done : done + len(exact)]))
        done += len(exact)
        for name, (part, weight) in parts.items():
            error, spread, size = (
                np.square((x[:, part] * weight).astype(np.float64)).sum(1)
                for x in (exact - low, exact - basis.mean, exact)
            )
            sums[name] += error.sum(), spread.sum(), size.sum()
            if name == "tokens":
                worst = max(worst, float(error.max()))
    result: dict[str, Any] = {
        name: {"vs_constant": _share(error, spread), "vs_size": _share(error, size)}
        for name, (error, spread, size) in sums.items()
    }
    return result | {"worst": _share(worst, sums["tokens"][1] / max(done, 1))}


def _share(part: float, whole: float) -> float:
    """Root of the ratio, to five digits; 0 of nothing."""
    return float(f"{np.sqrt(part / whole):.5g}") if whole > 0 else 0.0


def errors_by_rank(fit: Fit, mlp: Any, vectors: Floats) -> npt.NDArray[np.float64]:
    """[K]: the `tokens` error on places [S, 64] with 1, 2, ... K int8 coefficients."""
    total, kept = 0.0, np.zeros(len(fit.ranges))
    for outputs in outputs_of(mlp, vectors):
        total += float(((outputs - fit.mean.float()) * fit.weight).double().pow(2).sum())
        components = fit.components(outputs)
        lost = np.square(components - rounded(components, fit.ranges), dtype=np.float64)
        kept += (np.square(components, dtype=np.float64) - lost).sum(0)
    return np.sqrt(np.maximum(total - np.cumsum(kept), 0) / total) if total else np.zeros(len(kept))


def compared_tokens(
    model: FusarForConditionalGeneration, basis: Basis, projector: Projector, vectors: Floats, images: int = 2
) -> dict[str, float]:
    """Visual tokens with the coefficients against those with the exact TLM: speckled images, 9 x 9 held-out anchors.

    `change`: the error as a share of what the anchors change in the tokens at all.
    """
    rng = np.random.default_rng(1)
    baked = BakedModulation(model.tlm, *(torch.from_numpy(part) for part in (basis.mean, basis.basis)))
    positions = torch.from_numpy(grid_positions(9).copy())[None]  # the shared array is read-only
    cosines, ratios, errors = [], [], []
    for pixels in speckled(rng, images, model.config.fusar["image_size"]):
        chosen = vectors[rng.integers(0, len(vectors), positions.shape[1])]
        mask = torch.ones(1, len(chosen))
        with torch.no_grad():
            plain = model.visual_tokens(torch.from_numpy(pixels[None]))
            exact = model.tlm(plain, torch.from_numpy(chosen)[None], positions, mask)
            low = baked(plain, torch.from_numpy(projector.coefficients(chosen))[None], positions, mask)
        a, b = exact.double().flatten(), low.double().flatten()
        cosines.append(float(a @ b / (a.norm() * b.norm())))
        ratios.append(float(b.norm() / a.norm()))
        errors.append(float(_share(float((a - b).square().sum()), float((exact - plain).double().square().sum()))))
    return {"cosine": min(cosines), "norm_ratio": max(ratios, key=lambda r: abs(r - 1)), "change": max(errors)}
