"""A low-rank basis for what TLM's MLP says about places: (gamma, beta) = f(a) ~ mean + coefficients @ basis.

The error that the basis minimises, and that is reported, is that of the modulated token `t (1 + gamma) + beta`: gamma
counts with the RMS of its channel of the visual tokens, beta with 1. (Gamma multiplies, so the same error in gamma
weighs more in a channel whose tokens are large.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fusar_edge.errors import InputError
from fusar_edge.export.baking.projector import Projector, codes_from_coefficients, coefficients_from_codes
from fusar_edge.export.speckle import speckled
from fusar_edge.model.network import FusarForConditionalGeneration

FILENAME = "basis.npz"
BATCH = 1024
DIRECTIONS = 256
"""Directions that are looked at at least: from them follows which rank would reach a bound."""
WHOLE = 1024
"""Outputs up to which all eigenvectors are computed; beyond, the first ones by subspace iteration."""
MARGIN = 1.1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Basis:
    """What the coefficients of a baked table multiply."""

    mean: Floats
    """[2C], gamma then beta."""
    basis: Floats
    """[R, 2C]; orthogonal under `weight`, each row as long as its coefficient's range, so that those lie in -1..1."""
    weight: Floats
    """[2C], how much an error counts: RMS of the visual tokens (gamma), 1 (beta)."""

    @property
    def rank(self) -> int:
        return len(self.basis)

    def outputs(self, coefficients: Floats) -> Floats:
        """[S, R] -> gamma and beta [S, 2C]."""
        return self.mean + coefficients @ self.basis

    def save(self, path: Path) -> None:
        np.savez(path, mean=self.mean, basis=self.basis, weight=self.weight)


def read_basis(path: Path) -> Basis:
    """InputError for a file that is no basis."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Basis(*(archive[name] for name in ("mean", "basis", "weight")))
    except Exception as problem:  # NumPy and zipfile raise a dozen kinds for damaged archives
        raise InputError(f"{path} cannot be read ({problem}); bake the table again") from None


def tlm_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of the state of TLM's MLP: which TLM a table was baked from."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(np.ascontiguousarray(value.float().cpu().numpy()).tobytes())
    return digest.hexdigest()


def token_weight(model: FusarForConditionalGeneration, images: int = 4) -> Floats:
    """[2C]: RMS of each channel of the plain visual tokens of speckled images, then ones."""
    pixels = speckled(np.random.default_rng(0), images, model.config.fusar["image_size"])
    with torch.no_grad():
        squares = sum(model.visual_tokens(torch.from_numpy(p[None])).double().pow(2).mean((0, 1)) for p in pixels)
    rms = (squares / images).sqrt().numpy()  # type: ignore[union-attr]  # a sum of tensors, at least one
    floor = 1e-3 * float(np.sqrt((rms**2).mean()))
    return np.concatenate([np.maximum(rms, floor), np.ones_like(rms)]).astype(np.float32)


@dataclass(frozen=True)
class Fit:
    """Principal directions of the MLP's outputs on some places."""

    mean: Tensor
    """[2C] float64."""
    weight: Tensor
    directions: Tensor
    """[2C, K] float32, orthonormal in weighted outputs, by falling variance."""
    ranges: Floats
    """[K]: the component's value that becomes code 127."""

    def components(self, outputs: Tensor) -> Floats:
        """MLP outputs [S, 2C] -> [S, K]."""
        return ((outputs - self.mean.float()) * self.weight @ self.directions).numpy()

    def basis(self, rank: int) -> Basis:
        rows = (self.directions[:, :rank] / self.weight[:, None]).T * torch.from_numpy(self.ranges[:rank])[:, None]
        return Basis(self.mean.float().numpy(), rows.contiguous().numpy(), self.weight.numpy())


def outputs_of(mlp: nn.Module, vectors: Floats) -> Iterator[Tensor]:
    """The exact gamma and beta of vectors [S, 64], in batches [n, 2C]."""
    for start in range(0, len(vectors), BATCH):
        with torch.no_grad():
            yield mlp(torch.from_numpy(vectors[start : start + BATCH])).float()


def fit_directions(mlp: nn.Module, vectors: Floats, weight: Floats, rank: int) -> Fit:
    """Principal component analysis of the weighted outputs for `vectors` [S, 64]; memory does not grow with S."""
    scale = torch.from_numpy(weight)
    total, moment, shift = torch.zeros(len(weight), dtype=torch.float64), None, None
    for outputs in outputs_of(mlp, vectors):
        shift = outputs.mean(0) if shift is None else shift
        centred = (outputs - shift) * scale  # near the mean: float32 products keep their digits
        total += centred.double().sum(0)
        product = (centred.T @ centred).double()
        moment = product if moment is None else moment.add_(product)
    assert moment is not None
    assert shift is not None
    offset = total / len(vectors)
    covariance = moment / len(vectors) - torch.outer(offset, offset)
    directions = _leading(covariance, min(len(weight), max(4 * rank, DIRECTIONS))).float()
    fit = Fit(shift.double() + offset / scale, scale, directions, np.ones(directions.shape[1], np.float32))
    components = np.concatenate([fit.components(outputs) for outputs in outputs_of(mlp, vectors)])
    return Fit(fit.mean, scale, directions, int8_ranges(components))


def _leading(covariance: Tensor, count: int) -> Tensor:
    """[2C, count] eigenvectors of the largest eigenvalues."""
    size = len(covariance)
    if size <= max(WHOLE, count):
        return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count]
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(size, min(size, count + 32), generator=generator, dtype=torch.float64)
    for _ in range(8):
        block = torch.linalg.qr(covariance @ block).Q
    small = torch.linalg.eigh(block.T @ covariance @ block).eigenvectors.flip(1)
    return block @ small[:, :count]


def int8_ranges(components: Floats) -> Floats:
    """[S, K] -> [K]: the largest value seen, with a margin for places that were not. 1 for a component of zeros.

    Measured on fusar-tiny, rank 32, simulated anchors: error 0.0084 without the margin, 0.0088 with it, but the worst
    held-out place has 0.079 and 0.025. Clipping to the least squared error is worse on held-out places (0.0090, 0.227).
    """
    largest = MARGIN * np.abs(components).max(0)
    return np.where(largest > 0, largest, 1).astype(np.float32)


def rounded(components: Floats, ranges: Floats) -> Floats:
    """What int8 codes leave of components [S, K]."""
    return coefficients_from_codes(codes_from_coefficients(components / ranges)) * ranges.astype(np.float32)


def projector_from(mlp: Any, basis: Basis) -> Projector:
    """The MLP (Linear, SiLU, Linear) with the projection on the basis in its second layer."""
    weighted = basis.basis.astype(np.float64) * basis.weight
    project = (weighted * basis.weight / np.square(weighted).sum(1, keepdims=True)).T  # (2C, R)
    first, second = mlp[0], mlp[2]
    weight1, bias1, weight2, bias2 = (
        p.detach().cpu().double().numpy() for p in (first.weight, first.bias, second.weight, second.bias)
    )
    folded = (weight1.T, bias1, weight2.T @ project, (bias2 - basis.mean) @ project)
    return Projector(*(np.ascontiguousarray(part, np.float32) for part in folded))
