"""Training images and chips as grey arrays, with the same radiometry as scenes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fusar_edge.errors import DataError
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY, Radiometry
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import TileWindow

Grey = npt.NDArray[np.float32]

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")
LARGEST_PIXELS = 80_000_000
"""An image larger than this is a scene: read it by window."""


def grey_from_file(path: str | Path, radiometry: Radiometry = DEFAULT_RADIOMETRY) -> Grey:
    """A whole image as grey float32 [H, W] in 0..1; nodata and transparent pixels are 0.

    8-bit PNG, JPEG, BMP and plain TIFF: luminance / 255. GeoTIFF and float TIFF: as `open_scene` reads band 1.
    Raises DataError (SceneError for a TIFF) naming the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return _grey_from_tiff(path, radiometry)
    if suffix not in PILLOW_SUFFIXES:
        raise DataError(f"{path}: allowed images are {', '.join(PILLOW_SUFFIXES + TIFF_SUFFIXES)}")
    return _grey_from_picture(path)


def resized(grey: Grey, size: int) -> Grey:
    """Float32 [size, size], bicubic with antialiasing as Pillow resizes (the official preprocessing), in 0..1."""
    picture = Image.fromarray(np.ascontiguousarray(grey, np.float32))
    return np.clip(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)), 0.0, 1.0)


def _grey_from_tiff(path: Path, radiometry: Radiometry) -> Grey:
    with open_scene(path, radiometry=radiometry, located=False) as scene:
        if scene.width * scene.height > LARGEST_PIXELS:
            raise DataError(
                f"{path}: {scene.width} x {scene.height} px is a scene, not an image; cut it into tiles first"
            )
        if scene.geolocation is not None or scene.kind != "uint8":
            return scene.read(TileWindow(0, 0, scene.height, scene.width)).grey
    return _grey_from_picture(path)


def _grey_from_picture(path: Path) -> Grey:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if file.mode[0] in "IF":
                    raise DataError(
                        f"{path}: mode {file.mode}; 8 bits a channel are allowed (16-bit has no calibration)"
                    )
                picture: Image.Image = file
                if file.has_transparency_data:
                    rgba = file.convert("RGBA")
                    picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
                return np.asarray(picture.convert("L"), np.float32) / np.float32(255)
    except UnidentifiedImageError:
        reason = "it is empty" if path.stat().st_size == 0 else "its bytes are no image"
        raise DataError(f"{path} cannot be read as an image: {reason}; copy it again") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
        raise DataError(f"{path} cannot be read as an image, cut or damaged ({problem}); copy it again") from None
