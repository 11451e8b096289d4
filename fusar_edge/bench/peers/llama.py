"""llama.cpp on the bundle's decoder: GGUF of the same weights in Q8_0, through llama-cpp-python.

What is compared is decoding: tokens per second after the same prompt, at the same length of the cache. The visual
tokens come from the bundle's own vision graph and go in as embeddings at their mRoPE positions, so that the answers
are answers to the same image and can be set beside ours. The prefix is kept between questions, as llama.cpp's server
does.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.bench.peer import PeerAnswer, Question
from fusar_edge.bench.peers.gguf_file import gguf_file
from fusar_edge.bench.peers.prompt import PromptWriter, anchor_arrays
from fusar_edge.errors import BundleError, MissingExtraError
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.session import TileAnchors

Ints = npt.NDArray[np.int32]


class LlamaPeer:
    """llama.cpp's defaults but for threads, context and silence."""

    name = "llama.cpp"
    precision = "q8_0"
    compared = "decode"

    def __init__(self) -> None:
        self._decoder: _Decoder | None = None

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        if find_spec("llama_cpp") is None or find_spec("gguf") is None:
            raise MissingExtraError(
                f"{self.name} needs llama-cpp-python, which is compiled from source (a C++ compiler and CMake), and "
                "gguf: pip install llama-cpp-python gguf"
            )
        self._writer, self._bands = PromptWriter(bundle), bundle.settings.anchors.bands
        self._backend = open_backend(bundle, threads)
        self._decoder = _Decoder(gguf_file(bundle, work), bundle.settings.context_tokens, threads)

    def answer(
        self,
        grey: npt.NDArray[np.float32],
        anchors: TileAnchors | None,
        positions: npt.NDArray[np.float32] | None,
        questions: Sequence[Question],
    ) -> PeerAnswer:
        assert self._decoder is not None, "open comes first"
        times = [time.perf_counter()]
        visual = self._backend.vision(grey[None, None], *anchor_arrays(self._bands, anchors, positions))[0]
        times.append(time.perf_counter())
        self._take(visual)
        times.append(time.perf_counter())
        ms = {"vision": (times[1] - times[0]) * 1e3, "prefix": (times[2] - times[1]) * 1e3}
        ms |= {"prefill": 0.0, "decode": 0.0}
        said, tokens = [], 0
        for _, text, most in questions:
            marks = [time.perf_counter()]
            said.append(self._generate(text, most, marks))
            ms["prefill"] += (marks[1] - marks[0]) * 1e3
            ms["decode"] += (marks[-1] - marks[1]) * 1e3
            tokens += len(marks) - 2
        ms["tile"] = (time.perf_counter() - times[0]) * 1e3
        texts = tuple(self._writer.tokenizer.decode(list(ids)) for ids in said)
        return PeerAnswer(tuple(said), texts, ms, tokens)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None

    def _take(self, visual: npt.NDArray[Any]) -> None:
        """The prefix: text, image, text."""
        assert self._decoder is not None
        prefix = self._writer.prefix
        head, image = len(prefix.before), len(prefix.before) + len(visual)
        places = prefix.positions(len(prefix))
        self._decoder.forget(0)
        self._decoder.tokens(prefix.ids[:head], places[0, :head])
        self._decoder.embeddings(visual, places[:, head:image])
        self._decoder.tokens(prefix.ids[image:], places[0, image:])

    def _generate(self, text: str, most: int, marks: list[float]) -> tuple[int, ...]:
        """The answer; the time of each token goes to `marks`. The cache holds the prefix alone afterwards."""
        assert self._decoder is not None
        start, question = len(self._writer.prefix), np.array(self._writer.question(text), np.int32)
        places = self._writer.prefix.positions(start + len(question) + most)[0]
        first = at = int(places[start])
        pending, answer = question, list[int]()
        while True:
            token = self._decoder.tokens(pending, np.arange(at, at + len(pending), dtype=np.int32))
            at += len(pending)
            marks.append(time.perf_counter())
            if self._writer.ends(token):
                break
            answer.append(token)
            if len(answer) == most:
                break
            pending = np.array([token], np.int32)
        self._decoder.forget(first)
        return tuple(answer)


class _Decoder:
    """A llama.cpp context with one sequence, by the C functions: its Python class knows text positions alone."""

    def __init__(self, path: Path, context_tokens: int, threads: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise BundleError(f"{path}: llama.cpp {llama_cpp.__version__} does not load it; delete it and try again")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = context_tokens
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._vocabulary = int(vocabulary)
        token, place = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._single = self._batch(token, None, place), token, place

    def tokens(self, ids: Ints, places: Ints) -> int:
        """Run tokens at text positions [N]; the most probable next one. A single token has a batch that is there."""
        if len(ids) == 1:
            (batch, token, place) = self._single
            token[0], place[0] = ids[0], places[0]
        else:
            batch = self._batch(np.ascontiguousarray(ids), None, np.ascontiguousarray(places, np.int32))
        self._run(batch)
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def embeddings(self, values: npt.NDArray[Any], places: Ints) -> None:
        """Run embeddings [N, C] at mRoPE positions [3, N]; llama.cpp knows a fourth axis, which is 0 here."""
        four = np.concatenate([places, np.zeros_like(places[:1])]).astype(np.int32)
        self._run(self._batch(None, np.ascontiguousarray(values, np.float32), np.ascontiguousarray(four)))

    def forget(self, place: int) -> None:
        """Drop what stands at text position `place` and after it."""
        self._lib.llama_memory_seq_rm(self._memory, 0, place, -1)

    def close(self) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _batch(self, ids: Ints | None, values: npt.NDArray[np.float32] | None, places: Ints) -> Any:
        """A llama_batch over NumPy arrays, which it keeps alive. Logits of the last alone."""
        count = len(ids) if ids is not None else len(values if values is not None else ())
        one, row = np.ones(count, np.int32), ctypes.c_int32 * 1
        sequence = row(0)
        sequences = (ctypes.POINTER(ctypes.c_int32) * count)(
            *[ctypes.cast(sequence, ctypes.POINTER(ctypes.c_int32))] * count
        )
        wanted = np.zeros(count, np.int8)
        wanted[-1] = 1
        batch = self._lib.llama_batch(
            count,
            ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)) if ids is not None else None,
            values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if values is not None else None,
            places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            sequences,
            wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        batch.kept = (ids, values, places, one, sequence, sequences, wanted)
        return batch

    def _run(self, batch: Any) -> None:
        found = self._lib.llama_decode(self._context, batch)
        if found:
            raise BundleError(f"llama.cpp could not run {batch.n_tokens} tokens (llama_decode: {found})")
