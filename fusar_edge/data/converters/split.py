"""Train and validation parts that do not leak: fixed rules, no random state.

SSDD's neighbours in number are often crops of one scene, so whole blocks of numbers go to one side. Measured on the
913 public training chips (32 x 32 thumbnails, normalised correlation >= 0.9): six near-duplicate pairs, five at most
five numbers apart and one (534, 680) far apart; hence blocks, and then a look for pairs across the split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VAL_FRACTION = 0.2
BLOCK = 20
"""Consecutive image numbers that stay together."""
NEAR_DUPLICATE = 0.9
"""Correlation of two thumbnails above which two images count as the same view."""


def stable_hash(text: str) -> int:
    """The same number on every machine and in every process (Python's own hash is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def in_val(name: str) -> bool:
    """True for about a fifth of all names."""
    return stable_hash(name) / 2**64 < VAL_FRACTION


def block_name(stem: str) -> str:
    """Block of an image: its number // 20, or the whole name where it does not end in a number."""
    found = re.search(r"(\d+)$", stem)
    return f"{stem[: found.start()]}#{int(found[1]) // BLOCK}" if found else stem


def val_by_block(stems: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Bool [N]: blocks in the order of their hash go to validation until it holds a fifth of the images."""
    blocks = [block_name(stem) for stem in stems]
    sizes = {block: blocks.count(block) for block in set(blocks)}
    chosen: set[str] = set()
    held = 0
    for block in sorted(sizes, key=lambda b: (stable_hash(b), b)):
        if held + sizes[block] / 2 > VAL_FRACTION * len(stems):
            break
        chosen.add(block)
        held += sizes[block]
    return np.array([block in chosen for block in blocks], dtype=bool)


def near_duplicates(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Bool [N, N] without the diagonal: normalised correlation of thumbnails [N, h, w] >= NEAR_DUPLICATE."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
    same = flat @ flat.T >= NEAR_DUPLICATE
    np.fill_diagonal(same, False)
    return same


def train_and_val(
    stems: Sequence[str], thumbnails: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Bool [N] (True: validation) and what was found.

    A validation image whose near-duplicate is in train moves to train (again until none is left), so validation holds
    no view that training has seen.
    """
    val = val_by_block(stems)
    same = near_duplicates(thumbnails)
    crossing = int(np.count_nonzero(same[val][:, ~val]))
    before = int(val.sum())
    while (leak := val & same[:, ~val].any(axis=1)).any():
        val &= ~leak
    return val, {
        "near_duplicate_pairs": int(np.count_nonzero(same)) // 2,
        "near_duplicate_pairs_across_blocks": crossing,
        "moved_to_train": before - int(val.sum()),
    }
