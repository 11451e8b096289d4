"""The eight caption fields and the sentence of a simulated scene, by rules from its class map and its targets."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.data.simulator.landcover import ROAD, URBAN, ClassMap, class_fractions, is_water
from fusar_edge.data.tasks import targets_sentence, visible_targets
from fusar_edge.data.truth import CAPTION_FIELDS, Truth, grid_cell

_PLACES = {
    "open sea": "open sea",
    "coast": "a natural coast",
    "harbour": "a harbour",
    "strait": "a channel between two shores",
    "inland": "inland ground",
}
_BOUNDARIES = {
    "open sea": "No shoreline in view",
    "coast": "Irregular natural shoreline",
    "harbour": "Straight quay edges with piers and basins",
    "strait": "Two facing shorelines",
    "inland": "Field and forest edges, no coast",
}


def _share(fraction: float) -> str:
    for bound, word in ((0.15, "a small part"), (0.35, "a third"), (0.6, "half"), (0.85, "two thirds")):
        if fraction < bound:
            return word
    return "nearly all"


def _side(mask: npt.NDArray[np.bool_]) -> str:
    """Where the mass of a mask lies: upper left, left, centre, ..."""
    height, width = mask.shape
    total = max(int(mask.sum()), 1)
    y = float((mask.sum(axis=1) * np.arange(height)).sum()) / total / height
    x = float((mask.sum(axis=0) * np.arange(width)).sum()) / total / width
    vertical = "upper" if y < 0.42 else "lower" if y > 0.58 else ""
    horizontal = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return " ".join(word for word in (vertical, horizontal) if word) or "centre"


def _terrain(shares: dict[str, float], water: float, classes: ClassMap) -> str:
    if water > 0.995:
        return "Open water without land"
    land = {name: shares[name] for name in ("sand", "farmland", "forest", "urban", "quay")}
    first = max(land, key=lambda name: land[name])
    name = {"urban": "built-up land", "quay": "port ground"}.get(first, first)
    if water < 0.005:
        return f"Dry land, mostly {name}"
    return f"Water over {_share(water)} of the scene, then {name}"


def _functionality(kind: str, shares: dict[str, float], ships: int) -> str:
    if kind == "harbour":
        return "Port for loading and berthing ships"
    if kind == "inland":
        return "Settlement" if shares["urban"] > max(shares["farmland"], shares["forest"]) else "Farming and forestry"
    return "Shipping water" if ships else "No visible use of the water"


def _distribution(truth: Truth, ships: int) -> str:
    if not ships:
        return "No ships"
    cells = {grid_cell(t.box) for t in visible_targets(truth)}
    if ships == 1:
        return "One single ship"
    return "Ships close together in one place" if len(cells) == 1 else f"Ships spread over {len(cells)} of nine cells"


def _layout(kind: str, ships: int, moored: int, classes: ClassMap) -> str:
    if kind == "open sea":
        return "Ships alone on the sea" if ships else "Empty water surface"
    land = "" if kind == "inland" else f"Land on the {_side(~is_water(classes))} side"
    if kind == "inland":
        return "Patchwork of fields, woods and settlements"
    if moored:
        return f"{land}, ships along the quays"
    return f"{land}, ships on open water" if ships else f"{land}, empty water"


def _buildings(shares: dict[str, float], classes: ClassMap) -> str:
    built = shares["urban"] + shares["quay"]
    if built < 0.01:
        return "No buildings"
    density = "Scattered" if built < 0.12 else "Many" if built < 0.35 else "Dense"
    return f"{density} bright buildings on the {_side((classes >= URBAN) & (classes < ROAD))} side"


def _roads(shares: dict[str, float]) -> str:
    if shares["road"] > 0.003:
        return "Main road crossing the land" + (" and a street grid" if shares["urban"] > 0.05 else "")
    return "Street grid between buildings" if shares["urban"] + shares["quay"] > 0.05 else "No roads"


def _water(shares: dict[str, float], water: float) -> str:
    if water < 0.005:
        return "No water"
    name = "River" if shares["river"] > shares["sea"] else "Sea"
    return f"{name} covers {_share(water)} of the scene"


def described(truth: Truth, classes: ClassMap, kind: str, moored: int) -> Truth:
    """`truth` with `fields` and `sentence` filled in. `moored`: how many of the targets lie at a quay."""
    coarse = classes[::4, ::4]
    shares = class_fractions(coarse)
    water = shares["sea"] + shares["river"]
    ships = len(visible_targets(truth))
    texts = (
        _terrain(shares, water, coarse),
        _functionality(kind, shares, ships),
        _distribution(truth, ships),
        _layout(kind, ships, moored, coarse),
        _BOUNDARIES[kind],
        _buildings(shares, coarse),
        _roads(shares),
        _water(shares, water),
    )
    sentence = targets_sentence(truth).replace("A SAR image with", f"A SAR image of {_PLACES[kind]} with", 1)
    fields = dict(zip(CAPTION_FIELDS, texts, strict=True))
    return msgspec.structs.replace(truth, fields=fields, sentence=sentence)
