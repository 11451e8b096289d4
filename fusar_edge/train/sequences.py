"""Questions and answers about one image as token ids, with labels on the answers only.

Several questions of one image share its prompt prefix: each sees the prefix and itself, through the attention mask, and
its positions go on from the prefix, which is then computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from fusar_edge.data.chat import AFTER_IMAGE, AFTER_QUESTION, BEFORE_IMAGE, END, END_OF_TEXT, IMAGE_TOKEN
from fusar_edge.runtime.positions import mrope_positions

IGNORED = -100


@dataclass(frozen=True)
class Sequence:
    """Token ids, labels and segments [N] (0: the prefix, k: the k-th question), mRoPE positions [3, N]."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]


class SequenceWriter:
    """Encodes chats around one image of `cells` x `cells` visual tokens."""

    def __init__(self, tokenizer: Path, cells: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.cells = cells
        before, after = self._ids(BEFORE_IMAGE), self._ids(AFTER_IMAGE)
        self.prefix = before + self._ids(IMAGE_TOKEN) * (cells * cells) + after
        self.prefix_positions = mrope_positions(len(before), cells, len(after))
        self.pad = self._ids(END_OF_TEXT)[0]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def sequence(self, questions: list[tuple[str, str]], limit: int | None = None) -> Sequence:
        """Prefix and (question, answer) pairs; pairs that would lead beyond `limit` tokens are left out."""
        ids, labels, segments = list(self.prefix), [IGNORED] * len(self.prefix), [0] * len(self.prefix)
        positions = [self.prefix_positions]
        start = self.prefix_positions.max() + 1
        for question, answer in questions:
            asked, told = self._ids(question + AFTER_QUESTION), self._ids(answer + END)
            count = len(asked) + len(told)
            if limit is not None and len(ids) + count > limit:
                continue
            ids += asked + told
            labels += [IGNORED] * len(asked) + told
            segments += [segments[-1] + 1] * count
            positions.append(np.tile(np.arange(start, start + count), (3, 1)))
        return Sequence(np.array(ids), np.array(labels), np.array(segments), np.concatenate(positions, axis=1))

    def batch(self, sequences: list[Sequence]) -> dict[str, Tensor]:
        """input_ids, labels [B, N], position_ids [3, B, N], padded on the right; attention_mask [B, 1, N, N] bool.

        The mask is left out where no sequence holds more than one question: causal attention is the same then.
        """
        shape = (len(sequences), max(len(s.ids) for s in sequences))
        ids, labels = np.full(shape, self.pad), np.full(shape, IGNORED)
        segments, positions = np.zeros(shape, np.int64), np.zeros((3, *shape), np.int64)
        for row, sequence in enumerate(sequences):
            count = len(sequence.ids)
            ids[row, :count], labels[row, :count] = sequence.ids, sequence.labels
            segments[row, :count], positions[:, row, :count] = sequence.segments, sequence.positions
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        if segments.max() > 1:
            earlier = np.tri(shape[1], dtype=bool)
            together = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
            batch["attention_mask"] = (earlier & together)[:, None]
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def anchor_batch(anchors: list[tuple[NDArray[np.float32], NDArray[np.float32]] | None]) -> dict[str, Tensor]:
    """(features [S, 64], positions [S, 2]) or None for each image -> padded anchors, positions and mask."""
    most = max((len(a[0]) for a in anchors if a), default=0) or 1
    features = torch.zeros(len(anchors), most, 64)
    positions = torch.zeros(len(anchors), most, 2)
    mask = torch.zeros(len(anchors), most)
    for row, anchor in enumerate(anchors):
        if anchor:
            count = len(anchor[0])
            features[row, :count] = torch.from_numpy(anchor[0])
            positions[row, :count] = torch.from_numpy(anchor[1])
            mask[row, :count] = 1
    return {"anchors": features, "anchor_positions": positions, "anchor_mask": mask}
