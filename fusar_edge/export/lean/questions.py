"""A calibration sample as one run of each graph: the whole text at once, with the image in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.tiles.samples import Feeds, SampleReader
from fusar_edge.data.triplets import Triplet

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Asked:
    """An image with a question and the reference answer."""

    feeds: list[Feeds]
    """Inputs of vision: without anchors and, where there are any, with them; the last is the image as deployed."""
    input_ids: Ints
    """[1, N]."""
    visual_index: Ints
    """[1, N]."""
    positions: Ints
    """[3, 1, N]."""
    ends: npt.NDArray[Any]
    """Places after which calibration asks for logits, as `calibrate` runs the text."""
    answer: npt.NDArray[Any]
    """Places of the last token of the prompt and of each token of the answer: what INT8 is compared at."""


def asked(reader: SampleReader, sample: Triplet) -> Asked:
    single, steps = reader.steps(sample, single=reader.settings.context_tokens), reader.steps(sample)
    lengths = np.cumsum([step.input_ids.shape[1] for step in single])
    return Asked(
        reader.vision_feeds(sample),
        np.concatenate([step.input_ids for step in single], axis=1),
        np.concatenate([step.visual_index for step in single], axis=1),
        np.concatenate([step.position_ids for step in single], axis=2),
        np.cumsum([step.input_ids.shape[1] for step in steps]) - 1,
        lengths - 1,
    )
