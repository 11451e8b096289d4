"""When a scene was acquired, where its tags or a known product name say it for certain."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime

# Products whose name gives the start of the acquisition: Sentinel-1 SAFE and its measurement files, OPERA RTC-S1.
_STARTS = (
    re.compile(r"S1[A-D]_(?:S[1-6]|IW|EW|WV|EN)_[A-Z_]{4,5}\w{4}_(\d{8}T\d{6})_\d{8}T\d{6}_"),
    re.compile(r"S1[A-D]-(?:S[1-6]|IW\d?|EW\d?|WV\d?)-[A-Z]{3}-[HV]{2}-(\d{8}T\d{6})-"),
    re.compile(r"OPERA_L2_RTC-S1_T\d{3}-\d{6}-IW\d_(\d{8}T\d{6})Z_"),
)


def acquired_from_product(name: str, tags: Mapping[str, str], imagery: Mapping[str, str]) -> str | None:
    """Start of the acquisition in ISO 8601 UTC, or None.

    In this order: ACQUISITIONDATETIME of GDAL's IMAGERY domain, a tag `acquired`, a product name as file name, a
    product name in a tag. A mere date in a file name and TIFFTAG_DATETIME (often the processing time) do not count.
    """
    stated = imagery.get("ACQUISITIONDATETIME") or tags.get("acquired") or tags.get("ACQUIRED")
    if stated:
        with contextlib.suppress(ValueError):
            return _iso(datetime.fromisoformat(stated.strip()))
    for text in (name, *tags.values()):
        for pattern in _STARTS:
            if match := pattern.search(text.upper()):
                with contextlib.suppress(ValueError):
                    return _iso(datetime.strptime(match[1], "%Y%m%dT%H%M%S"))
    return None


def _iso(when: datetime) -> str:
    """ISO 8601 in UTC; a time without zone is UTC, as SAR products state it."""
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
