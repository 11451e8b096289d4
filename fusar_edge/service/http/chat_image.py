"""The image of a chat message: a data URL -> grey as the model takes it, within bounds, by the same path as scenes."""

from __future__ import annotations

import base64
import binascii
import io
import re
import uuid
import warnings

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError
from fusar_edge.sar.image import grey_from_file, resized
from fusar_edge.service.http.chat_request import ChatError
from fusar_edge.service.intake.intake import Intake
from fusar_edge.service.intake.untrusted import check

MOST_PIXELS = 1 << 24
"""4096 x 4096; a larger one is a scene, which /v1/scenes takes."""
FORMATS = {"image/png": ("PNG", ".png"), "image/jpeg": ("JPEG", ".jpg"), "image/tiff": ("TIFF", ".tif")}
_HEAD = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)((?:;[a-z-]+=[A-Za-z0-9_.-]+)*);base64,", re.IGNORECASE)


def grey_from_data_url(url: str, intake: Intake, image_size: int) -> npt.NDArray[np.float32]:
    """Grey [image_size, image_size] in 0..1 of a PNG, JPEG or TIFF, 8-bit or calibrated float; ChatError 400.

    A TIFF passes the checks of scenes, though it needs no place. Takes up to some 200 MB while it works.
    """
    data, media_type = _decoded(url)
    kind, suffix = FORMATS[media_type]
    name = f"the image ({media_type})"
    path = intake.incoming / f"chat-{uuid.uuid4().hex}{suffix}"
    try:
        _check_size(*_size(data, kind), name)
        path.write_bytes(data)
        if kind == "TIFF":
            facts = check(path, name=name, limits=intake.settings.limits, prober=intake.prober, located=False)
            _check_size(facts.width, facts.height, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a picture's metadata, which nobody reads
            grey = grey_from_file(path, intake.bundle.radiometry)
    except InputError as problem:
        message = str(problem).replace(str(path), name).replace(path.name, name)
        raise ChatError(400, message, "messages", "invalid_image") from None
    finally:
        path.unlink(missing_ok=True)
    return np.ascontiguousarray(resized(grey, image_size))


def _decoded(url: str) -> tuple[bytes, str]:
    head = _HEAD.match(url[:200])
    media_type = head[1].lower() if head else ""
    if head is None or media_type not in FORMATS:
        raise ChatError(
            400,
            "image_url must be a data URL, data:image/png;base64,... (or image/jpeg, image/tiff): nothing is fetched",
            "messages",
            "invalid_image_url",
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True), media_type
    except (binascii.Error, ValueError):
        raise ChatError(400, "the image's data URL is not base64", "messages", "invalid_image_url") from None


def _size(data: bytes, kind: str) -> tuple[int, int]:
    """Width and height as the header states them; nothing is decoded."""
    if kind == "TIFF":
        return 1, 1  # its header is read by the checks of scenes
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            return picture.size
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return MOST_PIXELS + 1, 1
    except Exception:  # Pillow raises what its parsers raise
        raise ChatError(400, f"the image's bytes are no readable {kind}", "messages", "invalid_image") from None


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MOST_PIXELS:
        raise ChatError(
            400,
            f"{name} has more than {MOST_PIXELS} pixels; cut it into tiles, or send it to /v1/scenes",
            "messages",
            "image_too_large",
        )
