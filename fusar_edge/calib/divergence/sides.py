"""The folders that can be compared layer by layer, behind one Protocol: each runs on pixels and forced tokens.

made by                            runs in        shows
train (base, stage1, stage2)       PyTorch        every layer
export, calibrate                  ONNX Runtime   every layer
build, engine onnxruntime          ONNX Runtime   every layer; of a fused decoder its own products, split by name
build, engine tensorrt             TensorRT       visual tokens, keys and values of each layer, logits
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from fusar_edge.calib.divergence.taps import (
    TOKENS,
    Array,
    HookedGraph,
    TappedFused,
    TappedGraph,
    Values,
    split_merged,
    with_outputs,
)
from fusar_edge.calib.graphs import STAGES, GraphFolder, open_graphs
from fusar_edge.calib.tiles.samples import Feeds, StepInput, vision_tokens
from fusar_edge.errors import InputError
from fusar_edge.manifest import Manifest, read_manifest
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import DECODER, STAGE, TENSORRT, VISION, Bundle, BundleSettings, bundle_path, open_bundle
from fusar_edge.runtime.trt import DeviceCache, TrtBackend
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY

CHECKPOINTS = ("base", "stage1", "stage2")


class Side(Protocol):
    """One of the two. Its cache starts empty."""

    folder: GraphFolder

    def see(self, feed: Feeds) -> Values:
        """Layers of vision, and TOKENS [1, T, C]."""
        ...

    def begin(self) -> None:
        """Empty the cache."""
        ...

    def past(self) -> Array:
        """The cache, [P, L, 2, 1, H_kv, D]."""
        ...

    def step(self, inputs: StepInput, visual: Array, past: Array | None = None) -> Values:
        """Layers of the decoder, what went into the cache, logits; after `past` instead of its own cache if given."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class LayerSide:
    """Two graphs that take the cache as an input and show every layer."""

    def __init__(
        self, folder: GraphFolder, vision: HookedGraph | TappedGraph, decoder: HookedGraph | TappedGraph
    ) -> None:
        self.folder, self._vision, self._decoder = folder, vision, decoder
        self.begin()

    def see(self, feed: Feeds) -> Values:
        return _seen(self._vision, feed)

    def begin(self) -> None:
        s = self.folder.settings
        self._past: Array = np.zeros((0, s.layers, 2, 1, s.kv_heads, s.head_dim), np.float32)

    def past(self) -> Array:
        return self._past

    def step(self, inputs: StepInput, visual: Array, past: Array | None = None) -> Values:
        before = self._past if past is None else past
        feed = {
            "input_ids": inputs.input_ids,
            "visual_tokens": visual.astype(np.float32, copy=False),
            "visual_index": inputs.visual_index,
            "position_ids": inputs.position_ids,
            "past": before.astype(np.float32, copy=False),
        }
        layers, outputs = self._decoder.run(feed)
        self._past = np.concatenate([before, outputs["new"]])
        return with_outputs(layers, outputs["new"], outputs["logits"])

    def close(self) -> None:
        pass


class FusedSide:
    """Plain vision and a fused decoder; the fused kernels themselves are what is compared."""

    def __init__(self, folder: GraphFolder, bundle: Bundle) -> None:
        self.folder = folder
        self._vision, self._backend = TappedGraph(bundle.file(VISION), ("visual_tokens",)), TappedFused(bundle)
        self._cache = self._backend.new_cache(folder.settings.context_tokens)

    def see(self, feed: Feeds) -> Values:
        return _seen(self._vision, feed)

    def begin(self) -> None:
        self._cache.truncate(0)

    def past(self) -> Array:
        return np.moveaxis(self._cache.buffer[..., : self._cache.length, :], -2, 0)

    def step(self, inputs: StepInput, visual: Array, past: Array | None = None) -> Values:
        cache, s = self._cache, self.folder.settings
        if past is not None:
            cache.buffer[..., : len(past), :] = np.moveaxis(past, 0, -2)
            cache.length = len(past)
        start = cache.length
        found = self._backend.step(cache, inputs.input_ids, visual, inputs.visual_index, inputs.position_ids)
        layers = split_merged(self._backend.values, s.kv_heads * s.head_dim)
        return with_outputs(layers, self.past()[start:], found.logits.copy())

    def close(self) -> None:
        pass


class PlanSide:
    """TensorRT plans, which show their outputs alone. Tested on a fake TensorRT; never run on a GPU."""

    def __init__(self, folder: GraphFolder, backend: TrtBackend) -> None:
        self.folder, self._backend, self._device = folder, backend, backend._device
        s = folder.settings
        assert s.plan is not None
        row = (s.layers, 2, 1, s.kv_heads, s.head_dim)
        self._cache: DeviceCache = backend.new_cache(s.context_tokens)
        with self._device:
            self._host = self._device.pinned((s.context_tokens, *row), s.plan.kv_dtype)

    def see(self, feed: Feeds) -> Values:
        return {TOKENS: vision_tokens(self._backend, feed)}

    def begin(self) -> None:
        self._cache.truncate(0)

    def past(self) -> Array:
        return self._rows(0)

    def step(self, inputs: StepInput, visual: Array, past: Array | None = None) -> Values:
        if past is not None:
            self._set_past(past)
        start = self._cache.length
        found = self._backend.step(self._cache, inputs.input_ids, visual, inputs.visual_index, inputs.position_ids)
        return with_outputs({}, self._rows(start), found.logits.copy())

    def _rows(self, start: int) -> Array:
        cache = self._cache
        rows = self._host[start : cache.length]
        if len(rows):
            with self._device:
                self._device.copy_to_host(rows, cache.address + start * cache.row_bytes)
                self._device.synchronise()
        return rows.copy()

    def _set_past(self, past: Array) -> None:
        rows = self._host[: len(past)]
        rows[...] = past
        if len(rows):
            with self._device:
                self._device.copy_to_device(self._cache.address, rows)
                self._device.synchronise()
        self._cache.length = len(past)

    def close(self) -> None:
        self._backend.close()


def open_side(path: Path) -> Side:
    """The folder as its manifest says what it is; InputError where it cannot be compared."""
    path = bundle_path(path) if str(path) == "default" else Path(path)
    manifest = read_manifest(path)
    if manifest.stage in CHECKPOINTS:
        return _checkpoint_side(path)
    if manifest.stage in STAGES:
        return _graph_side(open_graphs(path))
    if manifest.stage == STAGE:
        return _bundle_side(open_bundle(path))
    raise InputError(
        f"{path} was made by stage {manifest.stage!r}, which holds no network; give a checkpoint (train), or a folder "
        "made by: export, calibrate, build"
    )


def _seen(vision: HookedGraph | TappedGraph, feed: Feeds) -> Values:
    layers, outputs = vision.run(feed)
    return layers | {TOKENS: outputs["visual_tokens"]}


def _graph_side(folder: GraphFolder) -> LayerSide:
    vision, decoder = folder.path / VISION, folder.path / DECODER
    return LayerSide(folder, TappedGraph(vision, ("visual_tokens",)), TappedGraph(decoder, ("logits", "new")))


def _bundle_side(bundle: Bundle) -> Side:
    folder = GraphFolder(bundle.folder, bundle.manifest, bundle.settings, bundle.radiometry)
    facts = bundle.settings.adapters
    if facts is not None and facts.active != facts.exported:
        raise InputError(
            f"{bundle.folder} answers with the adapter {facts.active}, its graph refers to {facts.exported}: "
            f"fusar-edge bundle adapters use {bundle.folder} {facts.exported}, then compare"
        )
    if bundle.settings.engine == TENSORRT:
        backend = open_backend(bundle)
        assert isinstance(backend, TrtBackend)
        return PlanSide(folder, backend)
    return _graph_side(folder) if bundle.settings.fused is None else FusedSide(folder, bundle)


def _checkpoint_side(path: Path) -> LayerSide:
    from fusar_edge.export.decoder_graph import DecoderGraph
    from fusar_edge.export.vision_graph import VisionGraph
    from fusar_edge.model.checkpoint import load_checkpoint

    model, _, manifest = load_checkpoint(path)
    folder = GraphFolder(path, manifest, _checkpoint_settings(model, manifest), DEFAULT_RADIOMETRY)
    vision = HookedGraph(VisionGraph(model), ("visual_tokens",))
    return LayerSide(folder, vision, HookedGraph(DecoderGraph(model), ("logits", "next_ids", "new")))


def _checkpoint_settings(model: Any, manifest: Manifest) -> BundleSettings:
    from fusar_edge.export.settings import settings
    from fusar_edge.specs import ModelRecipe

    recipe = msgspec.toml.decode(manifest.recipe, type=ModelRecipe)
    known = set(BundleSettings.__struct_fields__)
    return msgspec.convert({k: v for k, v in settings(model, recipe).items() if k in known}, BundleSettings)
