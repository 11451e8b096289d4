"""Puts the fused decoder in the place of the plain one, and measures that it says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from fusar_edge.calib.compare import Array, cosine, norm_ratio
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.qdq import save_graph
from fusar_edge.calib.tiles.samples import SampleReader
from fusar_edge.engines.fused import fused
from fusar_edge.engines.plain_twin import without_weights
from fusar_edge.errors import GateError
from fusar_edge.export.speckle import speckled
from fusar_edge.runtime.backend import Backend, Int32
from fusar_edge.runtime.bundle import DECODER, PLAIN_DECODER, BundleSettings

LEAST_COSINE = 0.99
"""Of the logits with the plain graph's, on average; the INT8 graph itself has 0.9997 with FP32's."""
IMAGES, TOKENS = 2, 16


def fuse_decoder(graphs: GraphFolder, settings: BundleSettings, work: Path) -> BundleSettings:
    """Write the fused decoder into `work`, and the plain one without its weights; what the runtime must know of it."""
    import onnx

    plain = onnx.load(graphs.path / DECODER)
    made, facts = fused(plain, settings)
    for path in work.glob(f"{DECODER}*"):
        path.unlink()
    save_graph(made, work / DECODER)
    onnx.save(without_weights(plain, made), work / PLAIN_DECODER)
    return msgspec.structs.replace(settings, fused=facts)


def compared_with_plain(made: Backend, plain: Backend, reader: SampleReader) -> dict[str, float]:
    """Figures of the fused decoder beside the plain one. GateError where it says something else.

    Both are asked each task's question about speckle, on the same visual tokens, and fed the plain one's answer.
    """
    pairs = [pair for image in _images(reader) for pair in _pairs(made, plain, reader, image)]
    figures = {
        "logits_cosine": float(np.mean([cosine(a, b) for a, b in pairs])),
        "logits_cosine_least": min(cosine(a, b) for a, b in pairs),
        "logits_norm_ratio": float(np.mean([norm_ratio(a, b) for a, b in pairs])),
        "token_agreement": float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
        "tokens": len(pairs),
    }
    found = figures["logits_cosine"]
    if not found >= LEAST_COSINE:  # NaN is no agreement
        raise GateError(
            f"{reader.graphs.path}: the logits of the fused decoder have cosine {found:.4f} with the plain one's; "
            f"{LEAST_COSINE} is asked for. Nothing was written: set decoder = 'plain' in the spec"
        )
    return figures


def _images(reader: SampleReader) -> Array:
    return speckled(np.random.default_rng(0), IMAGES, reader.settings.image_size)


def _pairs(made: Backend, plain: Backend, reader: SampleReader, image: Array) -> Iterator[tuple[Array, Array]]:
    """Logits of both at each token of an answer."""
    none = (np.zeros((1, 1, *rest), np.float32) for rest in ((reader.settings.anchors.bands,), (2,), ()))
    visual = plain.vision(image[None], *none)
    room = len(reader.prefix) + 256
    for task in sorted(reader.prompts.tasks):
        caches = [backend.new_cache(room) for backend in (made, plain)]
        question = reader.tokenizer.encode_plain(reader.prompts.question(task, box=(1, 2, 3, 4)))
        pending: Int32 = np.array([*reader.prefix.ids, *question], np.int32)
        index = np.full(room, -1, np.int32)
        index[: len(reader.prefix)] = reader.prefix.visual_index
        positions = reader.prefix.positions(room)
        for _ in range(TOKENS):
            part = slice(caches[0].length, caches[0].length + len(pending))
            steps = [
                backend.step(cache, pending[None], visual, index[None, part], positions[:, None, part])
                for backend, cache in zip((made, plain), caches, strict=True)
            ]
            yield steps[0].logits.copy(), steps[1].logits.copy()
            pending = steps[1].next_ids
