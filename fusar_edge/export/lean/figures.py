"""What a lean export measured, put together from what each layer left in the journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def worst_equality(found: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Worst figures of each output over all layers that compared it."""
    worst: dict[str, dict[str, float]] = {}
    for outputs in found:
        for output, figures in outputs.items():
            kept = worst.setdefault(output, dict(figures))
            for name, value in figures.items():
                if name == "norm_ratio":
                    kept[name] = max(kept[name], value, key=lambda ratio: abs(ratio - 1))
                else:
                    kept[name] = max(kept[name], value) if name == "max_abs" else min(kept[name], value)
    return worst


def int8_figures(vision: list[list[Any]], logits: list[list[Any]], images: int) -> dict[str, float]:
    """INT8 against float on the held-out samples; names as in calib.compare.Reference.compared.

    `logits`: cosine, ratio of norms, KL divergence, same token, at each token of the answers.
    """
    cosines, ratios, apart, same = np.array(logits, np.float64).T
    return vision_figures(vision) | {
        "logits_cosine": float(cosines.mean()),
        "logits_cosine_least": float(cosines.min()),
        "logits_norm_ratio": float(ratios.mean()),
        "logits_norm_off": float(np.abs(ratios - 1).mean()),
        "logits_kl": float(apart.mean()),
        "token_agreement": float(same.mean()),
        "images": images,
        "tokens": len(logits),
    }


def vision_figures(rows: list[list[Any]]) -> dict[str, float]:
    """`rows`: cosine and ratio of norms of each image, with its anchors and without."""
    cosines, ratios = np.array(rows, np.float64).T
    return {
        "vision_cosine": float(cosines.mean()),
        "vision_cosine_least": float(cosines.min()),
        "vision_norm_ratio": float(ratios.mean()),
        "vision_norm_off": float(np.abs(ratios - 1).mean()),
    }
