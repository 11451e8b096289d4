"""TLM, token-wise linear modulation of the visual tokens by AlphaEarth anchors (arXiv 2602.19190, section 3).

Format `tlm_original_train_patch_resize_v1` of the official code; both epsilons are part of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMAT = "tlm_original_train_patch_resize_v1"
EPSILON = 1e-6
VECTOR_SIZE = 64


def patch_weights(positions: Tensor, mask: Tensor, patches: int, sigma: float) -> Tensor:
    """Share of each anchor in each patch: Gaussian on the pre-merge grid, normalised, masked, normalised again.

    positions [B, S, 2] are (y, x) in [0, 1]; mask [B, S] is 1 for a usable anchor; sigma in patches.
    Returns [B, patches * patches, S]; a row sums to just under 1, or to 0 where every anchor is masked.
    """
    axis = torch.arange(patches, dtype=positions.dtype, device=positions.device)
    at = positions * (patches - 1)
    squared = ((at[..., None] - axis) ** 2).transpose(1, 2)  # (B, 2, S, patches)
    distance = squared[:, 0, :, :, None] + squared[:, 1, :, None, :]  # (B, S, Hp, Wp)
    weights = torch.exp(-distance / (2 * sigma**2)).flatten(2).transpose(1, 2)  # (B, Hp * Wp, S)
    weights = weights / (weights.sum(-1, keepdim=True) + EPSILON)
    weights = weights * mask[:, None, :]
    return weights / (weights.sum(-1, keepdim=True) + EPSILON)


def resize_matrix(patches: int, merged: int) -> Tensor:
    """Bilinear resize (align_corners False, no antialias) of a square grid as a constant [merged^2, patches^2]."""
    basis = torch.eye(patches * patches).reshape(patches * patches, 1, patches, patches)
    resized = F.interpolate(basis, size=(merged, merged), mode="bilinear", align_corners=False)
    return resized.reshape(patches * patches, merged * merged).T.contiguous()


class TokenModulation(nn.Module):
    """`token * (1 + gamma) + beta`, gamma and beta spread from the anchors over the grid of visual tokens.

    The MLP is `film_mlp`, key for key the official `vec64_film.pt`.
    """

    def __init__(self, channels: int, patches: int, merged: int, sigma: float = 2.0, hidden_mult: int = 4) -> None:
        super().__init__()
        self.channels, self.patches, self.merged = channels, patches, merged
        self.sigma, self.hidden_mult = sigma, hidden_mult
        hidden = max(128, hidden_mult * channels)
        self.film_mlp = nn.Sequential(nn.Linear(VECTOR_SIZE, hidden), nn.SiLU(), nn.Linear(hidden, 2 * channels))
        # Not a buffer: transformers builds models on the meta device and would leave it empty.
        self._resize: Tensor | None = None

    def forward(self, tokens: Tensor, anchors: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, T, C], anchors [B, S, 64], positions [B, S, 2], mask [B, S] -> [B, T, C]."""
        weights = patch_weights(positions.float(), mask.float(), self.patches, self.sigma)
        spread = torch.matmul(self.resize(tokens.device), weights)  # (B, T, S)
        gamma, beta = self.film_mlp(anchors).float().chunk(2, dim=-1)
        modulated = tokens.float() * (1 + torch.matmul(spread, gamma)) + torch.matmul(spread, beta)
        return modulated.to(tokens.dtype)

    def resize(self, device: torch.device) -> Tensor:
        """`resize_matrix` of this grid."""
        if self._resize is None or self._resize.device != device:
            self._resize = resize_matrix(self.patches, self.merged).to(device)
        return self._resize


class BakedModulation(nn.Module):
    """TLM without its MLP: an anchor is its coefficients on a basis of (gamma, beta), which depend on the place alone.

    Spreading is linear, so the R coefficients are spread, and the basis multiplies what arrives at each token:
    gamma|beta = (A @ coefficients) @ basis + rowsum(A) mean, A the spread of TokenModulation. A masked anchor has
    weight 0 in A, so with every anchor masked the tokens are unchanged, bit for bit.
    """

    mean: Tensor
    resize: Tensor

    def __init__(self, tlm: TokenModulation, mean: Tensor, basis: Tensor) -> None:
        """mean [2C], basis [R, 2C]."""
        super().__init__()
        self.patches, self.sigma = tlm.patches, tlm.sigma
        self.register_buffer("mean", mean)
        self.register_buffer("resize", resize_matrix(tlm.patches, tlm.merged), persistent=False)
        self.basis = nn.Linear(basis.shape[0], basis.shape[1], bias=False)
        self.basis.weight = nn.Parameter(basis.T.contiguous(), requires_grad=False)

    @property
    def bands(self) -> int:
        return self.basis.in_features

    def forward(self, tokens: Tensor, anchors: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, T, C], anchors [B, S, R], positions [B, S, 2], mask [B, S] -> [B, T, C]."""
        weights = patch_weights(positions, mask, self.patches, self.sigma)  # (B, P, S)
        # The resize comes last: at 324 anchors and R = 32 that is a fifth of the products of A first.
        mixed = torch.matmul(self.resize, torch.matmul(weights, anchors))  # (B, T, R)
        share = torch.matmul(self.resize, weights.sum(-1, keepdim=True))  # (B, T, 1)
        gamma, beta = (self.basis(mixed) + share * self.mean).chunk(2, dim=-1)
        return tokens * (1 + gamma) + beta
