"""The images of a data set: found, measured, copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def image_paths(folder: Path) -> list[Path]:
    """Images directly in `folder`, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def thumbnail_from_file(path: Path, side: int = 32) -> tuple[tuple[int, int], npt.NDArray[np.float32]]:
    """(width, height) and a float32 [side, side] box mean of the grey image. DataError: it cannot be decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            grey = image.convert("L")  # decodes: a cut file fails here
            small = np.asarray(grey.resize((side, side), Image.Resampling.BOX), np.float32)
            return image.size, small
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise DataError(f"{path} cannot be read as an image ({problem}): copy it again or remove it") from None


def copy_image(path: Path, out: Path) -> None:
    """Copy the bytes; a link would let a change of the copy reach the original."""
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, out)
