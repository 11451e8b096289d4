"""A bundle's prompt, whole, as those who keep no prefix need it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusar_edge.runtime.bundle import TOKENIZER, Bundle
from fusar_edge.runtime.generate import Prefix
from fusar_edge.runtime.session import TileAnchors
from fusar_edge.runtime.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]


class PromptWriter:
    """Question -> ids, and ids -> text."""

    def __init__(self, bundle: Bundle) -> None:
        self.settings, self.prompts = bundle.settings, bundle.prompts
        self.tokenizer = Tokenizer(bundle.file(TOKENIZER))
        self.prefix = Prefix(
            tuple(self.tokenizer.encode(self.prompts.before_image)),
            self.settings.cells,
            self.settings.image_token_id,
            tuple(self.tokenizer.encode(self.prompts.after_image)),
        )

    def question(self, text: str) -> list[int]:
        """What follows the prefix: the question and the template's piece after it."""
        return self.tokenizer.encode_plain(text) + self.tokenizer.encode(self.prompts.after_question)

    def ids(self, text: str) -> npt.NDArray[np.int32]:
        """[N], everything before the answer."""
        return np.concatenate([self.prefix.ids, np.array(self.question(text), np.int32)])

    def visual_index(self, length: int) -> npt.NDArray[np.int32]:
        """[length]; -1 for text."""
        index = np.full(length, -1, np.int32)
        index[: len(self.prefix)] = self.prefix.visual_index
        return index

    def ends(self, token: int) -> bool:
        return token in self.settings.eos_ids


def anchor_arrays(
    bands: int, anchors: TileAnchors | None, positions: npt.NDArray[np.float32] | None
) -> tuple[Floats, Floats, Floats]:
    """Vectors [1, A, bands], positions [1, A, 2], mask [1, A]; no anchors is one masked anchor."""
    if anchors is None or positions is None:
        return np.zeros((1, 1, bands), np.float32), np.zeros((1, 1, 2), np.float32), np.zeros((1, 1), np.float32)
    return anchors.vectors()[None], positions[None], anchors.mask[None].astype(np.float32)
