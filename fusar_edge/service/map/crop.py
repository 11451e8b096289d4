"""The pixels of one tile as the model was shown them."""

from __future__ import annotations

import io

import numpy as np

from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow


def crop_png(scene: Scene, window: TileWindow) -> bytes:
    """8-bit grey PNG of the window at its own size; nodata is black, as for the model. SceneError if unreadable."""
    from PIL import Image

    grey = np.rint(scene.read(window).grey * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", compress_level=3)
    return file.getvalue()
