"""The plain ONNX Runtime loop: what a user writes around an Optimum export with past keys and values.

Default session options but for the threads, `session.run` on NumPy arrays, the cache grown by np.concatenate, and for
each question vision and the whole prompt anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.bench.peer import PeerAnswer, Question
from fusar_edge.bench.peers.fp32_graph import fp32_folder
from fusar_edge.bench.peers.prompt import PromptWriter, anchor_arrays
from fusar_edge.errors import BundleError
from fusar_edge.runtime.bundle import DECODER, TENSORRT, VISION, Bundle
from fusar_edge.runtime.session import TileAnchors


class OrtLoopPeer:
    """On the bundle's graphs in FP32, as an export without quantisation gives them."""

    name = "ort-loop"
    precision = "fp32"
    compared = "tile"

    def __init__(self) -> None:
        self._sessions: tuple[Any, Any] | None = None

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        folder, providers = self._folder(bundle, work), ["CPUExecutionProvider"]
        vision, decoder = (
            onnxruntime.InferenceSession(folder / name, options, providers=providers) for name in (VISION, DECODER)
        )
        self._sessions = vision, decoder
        self._writer, self._settings = PromptWriter(bundle), bundle.settings

    def _folder(self, bundle: Bundle, work: Path) -> Path:
        return fp32_folder(bundle, work)

    def answer(
        self,
        grey: npt.NDArray[np.float32],
        anchors: TileAnchors | None,
        positions: npt.NDArray[np.float32] | None,
        questions: Sequence[Question],
    ) -> PeerAnswer:
        start = time.perf_counter()
        ms = dict.fromkeys(("vision", "prefill", "decode"), 0.0)
        said, tokens = [], 0
        vectors = anchor_arrays(self._settings.anchors.bands, anchors, positions)
        for _, text, most in questions:
            times = [time.perf_counter()]
            visual = self._see(grey, *vectors)
            times.append(time.perf_counter())
            ids = self._generate(visual, text, most, times)
            ms["vision"] += (times[1] - times[0]) * 1e3
            ms["prefill"] += (times[2] - times[1]) * 1e3
            ms["decode"] += (times[-1] - times[2]) * 1e3
            tokens += len(times) - 3
            said.append(ids)
        texts = tuple(self._writer.tokenizer.decode(list(ids)) for ids in said)
        ms["tile"] = (time.perf_counter() - start) * 1e3
        return PeerAnswer(tuple(said), texts, ms, tokens)

    def close(self) -> None:
        self._sessions = None

    def _see(self, grey: Any, vectors: Any, places: Any, mask: Any) -> npt.NDArray[np.float32]:
        assert self._sessions is not None, "open comes first"
        feed = {"pixels": grey[None, None], "anchors": vectors, "anchor_positions": places, "anchor_mask": mask}
        visual: npt.NDArray[np.float32] = self._sessions[0].run(None, feed)[0]
        return visual

    def _generate(self, visual: Any, text: str, most: int, times: list[float]) -> tuple[int, ...]:
        """The answer; the time of each token goes to `times`."""
        assert self._sessions is not None
        s = self._settings
        past = np.zeros((0, s.layers, 2, 1, s.kv_heads, s.head_dim), np.float32)
        pending, answer = self._writer.ids(text), list[int]()
        index = self._writer.visual_index(len(pending) + most)
        positions = self._writer.prefix.positions(len(index))
        while True:
            part = slice(len(past), len(past) + len(pending))
            feed = {
                "input_ids": pending[None],
                "visual_tokens": visual,
                "visual_index": index[None, part],
                "position_ids": np.ascontiguousarray(positions[:, None, part]),
                "past": past,
            }
            logits, _, new = self._sessions[1].run(["logits", "next_ids", "new"], feed)
            token = int(logits[0].argmax())
            times.append(time.perf_counter())
            if self._writer.ends(token):
                return tuple(answer)
            answer.append(token)
            if len(answer) == most:
                return tuple(answer)
            past, pending = np.concatenate([past, new]), np.array([token], np.int32)


class OrtLoopInt8Peer(OrtLoopPeer):
    """The same loop on the bundle's own INT8 graphs."""

    name = "ort-loop-int8"
    precision = "int8"

    def _folder(self, bundle: Bundle, work: Path) -> Path:
        if bundle.settings.engine == TENSORRT:
            raise BundleError(f"{bundle.folder} holds TensorRT plans; {self.name} runs a bundle for onnxruntime")
        self.precision = bundle.settings.precision
        from fusar_edge.engines.plain_twin import plain_bundle

        folder = work / f"plain-{bundle.sha256[:16]}"
        return folder if folder.is_dir() else plain_bundle(bundle, folder).folder
