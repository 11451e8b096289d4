"""Plants activation outliers as large language models have them: few channels, far larger than the rest.

The function of the model stays: what a channel gains, the weights that read it lose. SmoothQuant's own paper names
outliers of about 100 times in fixed channels.
"""

from __future__ import annotations

import torch

from fusar_edge.calib.smoothquant.seams import fold, seams, untie_head
from fusar_edge.model.network import FusarForConditionalGeneration

FACTOR = 100.0
CHANNELS = 0.005
"""Share of a tensor's channels, one at least."""


def plant(model: FusarForConditionalGeneration, seed: int = 0) -> None:
    """In place, at every seam."""
    generator = torch.Generator().manual_seed(seed)
    untie_head(model)
    for seam in seams(model):
        factors = torch.ones(seam.factors)
        few = max(1, round(CHANNELS * seam.factors))
        factors[torch.randperm(seam.factors, generator=generator)[:few]] = 1 / FACTOR
        fold(seam, factors)
