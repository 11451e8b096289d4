"""Optimisation profiles: for which shapes the plans are built (the graphs' inputs are in DESIGN section 3)."""

from __future__ import annotations

from typing import Any

from fusar_edge.engines.planner import PREFIX_TEXT, QUESTION
from fusar_edge.errors import GateError, InputError
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.runtime.trt_api import constructed

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input -> (least, usual, largest) shape."""

ANCHORS = 1024
"""Anchors of one image at most."""


def vision_profiles(settings: BundleSettings, batch: int = 8) -> list[Profile]:
    """One: batch 1 to `batch`, 1 to `ANCHORS` anchors; usual is one image with a whole grid of anchors."""
    size, nodes, bands = settings.image_size, settings.anchor_nodes**2, settings.anchors.bands

    def shapes(images: int, anchors: int) -> dict[str, Shape]:
        return {
            "pixels": (images, 1, size, size),
            "anchors": (images, anchors, bands),
            "anchor_positions": (images, anchors, 2),
            "anchor_mask": (images, anchors),
        }

    return [_profile(shapes(1, 1), shapes(1, min(nodes, ANCHORS)), shapes(batch, ANCHORS))]


def decoder_profiles(settings: BundleSettings, prefill_tokens: int = 512, cache_tokens: int = 1024) -> list[Profile]:
    """Two, in this order: prefill, N = 1 to `prefill_tokens` new tokens after P = 0 to `cache_tokens` - 1 cached ones

    (an image after nothing, a question after the cached prefix); and decode, N = 1 after P = 1 to `cache_tokens` - 1.
    Usual are the image with its template after nothing, and a cache half full. InputError where `prefill_tokens` does
    not hold the first or `cache_tokens` a question too.
    """
    s, image = settings, settings.cells**2
    usual = image + PREFIX_TEXT
    for name, tokens, least in (
        ("prefill_tokens", prefill_tokens, usual),
        ("cache_tokens", cache_tokens, usual + QUESTION),
    ):
        if tokens < least:
            raise InputError(
                f"{name} is {tokens}, but an image is {image} tokens, the template around it {PREFIX_TEXT} and a "
                f"question {QUESTION}: give {least} or more"
            )

    def shapes(new: int, past: int) -> dict[str, Shape]:
        return {
            "input_ids": (1, new),
            "visual_tokens": (1, image, s.channels),
            "visual_index": (1, new),
            "position_ids": (3, 1, new),
            "past": (past, s.layers, 2, 1, s.kv_heads, s.head_dim),
        }

    last = cache_tokens - 1
    prefill = _profile(shapes(1, 0), shapes(usual, 0), shapes(min(prefill_tokens, cache_tokens), last))
    return [prefill, _profile(shapes(1, 1), shapes(1, cache_tokens // 2), shapes(1, last))]


def _profile(least: dict[str, Shape], usual: dict[str, Shape], largest: dict[str, Shape]) -> Profile:
    return {name: (least[name], usual[name], largest[name]) for name in least}


def optimisation_profile(builder: Any, network: Any, profile: Profile, graph: str, *, first: bool = True) -> Any:
    """`profile` as TensorRT's own object. GateError where the network's inputs are not the contract's.

    Every profile but the first is asked to take no weight memory of its own: the weights of prefill serve decode too,
    in prefill's layout. (By default TensorRT may keep a second copy. TensorRT-RTX 1.7 does so whatever it is asked: 879
    MiB for a decoder slice of 460. What a Jetson does is not measured.)
    """
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    if names != set(profile):
        raise GateError(f"{graph}: its inputs are {sorted(names)}; the contract has {sorted(profile)}")
    made = constructed(builder.create_optimization_profile, "an optimisation profile")
    for name, shapes in profile.items():
        made.set_shape(name, *shapes)
    if not first:
        made.extra_memory_target = 0.0
    return made
