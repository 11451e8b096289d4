"""Pascal VOC annotations: boxes of one image."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec

from fusar_edge.data.truth import Box
from fusar_edge.errors import DataError


class VocImage(msgspec.Struct, frozen=True):
    """What an annotation says; boxes in pixels of the image, (x1, y1, x2, y2)."""

    size: tuple[int, int]
    """Width and height."""
    objects: tuple[tuple[str, Box], ...]
    """(name, box) of each object, in the order of the file."""


def _number(node: ElementTree.Element, tag: str, path: Path) -> float:
    text = node.findtext(tag)
    try:
        return float(text if text is not None else "absent")
    except ValueError:
        raise DataError(f"{path}: <{tag}> in <{node.tag}> is {text!r}: it must be a number of pixels") from None


def _object(node: ElementTree.Element, path: Path) -> tuple[str, Box]:
    name = (node.findtext("name") or "").strip()
    corners = node.find("bndbox")
    if not name or corners is None:
        raise DataError(f"{path}: an <object> lacks <name> or <bndbox>; each needs both")
    x1, y1, x2, y2 = (_number(corners, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax"))
    # also refuses NaN, which compares False
    if not (x1 < x2 and y1 < y2):
        raise DataError(f"{path}: box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] is empty or reversed: xmin < xmax, ymin < ymax")
    return name, (x1, y1, x2, y2)


def read_voc(path: Path) -> VocImage:
    """Read one XML file. DataError names it: broken XML, no size, an object without name or box, an empty box."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as problem:
        raise DataError(f"{path} is not readable XML ({problem}): copy it again") from None
    size = root.find("size")
    if size is None:
        raise DataError(f"{path} has no <size>: it is not a Pascal VOC annotation")
    width, height = (int(_number(size, tag, path)) for tag in ("width", "height"))
    return VocImage((width, height), tuple(_object(node, path) for node in root.findall("object")))
