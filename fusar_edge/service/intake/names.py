"""File names from outside -> names that are safe on our disk, in a URL and in a log."""

from __future__ import annotations

import re
import unicodedata

LONGEST_BYTES = 120
"""Of the whole name in UTF-8: file systems allow 255, and temporary names beside it are longer."""
_SUFFIX = re.compile(r"\.tiff?$", re.IGNORECASE)


def safe_name(name: str) -> str:
    """The last part of a path or name with either slash; letters and digits of any script, `.`, `_`, `-`; ends in .tif.

    Never empty, never hidden, never an option: `../../etc/passwd` -> `passwd.tif`, `` -> `scene.tif`. A product's name
    survives, so that its date of acquisition is still read from it.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode()))[-1]
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in _SUFFIX.sub("", last.strip()))
    stem = kept.lstrip(".-_").rstrip("._").encode()[: LONGEST_BYTES - 4].decode("utf-8", "ignore")
    return f"{stem or 'scene'}.tif"
