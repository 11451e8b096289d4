"""TensorRT on a GPU: the same two graphs, as plans that were built on the device. Not run on a GPU so far.

One stream; every call ends by waiting for it once. What a decode step does on the host: one copy of three small inputs,
one enqueue, one copy of token and logits back, one wait. The KV cache is one buffer with the token outermost: `past` is
bound at its start and `new` at `past`'s end, so that nothing is moved. All contexts share one scratch buffer, for they
run one after the other.
"""

from __future__ import annotations

import traceback
import weakref
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import BundleError, DeviceError, InputError
from fusar_edge.runtime.backend import Cache, Floats, Int32, Step
from fusar_edge.runtime.bundle import DECODER, PLANS, VISION, Bundle
from fusar_edge.runtime.cache import Rows
from fusar_edge.runtime.contract import graph_contract
from fusar_edge.runtime.device import ALIGNMENT, Device, open_device
from fusar_edge.runtime.staging import Returned, Shape, Staging
from fusar_edge.runtime.trt_api import DeviceFacts, Listener, constructed, device_facts, open_tensorrt
from fusar_edge.runtime.trt_engine import Context, Engine
from fusar_edge.runtime.trt_graphs import DecodeGraphs

PREFILL, DECODE = 0, 1
"""Profiles of the decoder's plan: N new tokens after P >= 0; one new token after P >= 1."""


class DeviceCache(Rows):
    """Rows of `row_bytes` from `address` on, in device memory."""

    def __init__(self, capacity: int, row_bytes: int, address: int) -> None:
        super().__init__(capacity)
        self.row_bytes, self.address = row_bytes, address

    def next_address(self, tokens: int) -> int:
        """Where the next rows go; InputError where `tokens` of them do not fit."""
        self.check_room(tokens)
        return self.address + self.length * self.row_bytes


class TrtBackend:
    """Backend over two plans. Used by the thread that made it; owns `device` and closes it.

    After it is made, only `new_cache` allocates, and TensorRT the first time that a CUDA graph is made.
    """

    def __init__(self, bundle: Bundle, trt: Any, device: Device) -> None:
        """`trt`: the module tensorrt, opened by trt_api, which asks the driver first."""
        self.settings, self._device = bundle.settings, device
        try:
            with device:
                self._open_engines(bundle, trt)
                self._make_buffers()
                device.synchronise()
        except BaseException as problem:
            traceback.clear_frames(problem.__traceback__)  # engines go before their context
            self.close()
            raise

    def _open_engines(self, bundle: Bundle, trt: Any) -> None:
        listener = Listener(trt)
        runtime = constructed(trt.Runtime, "a runtime", listener)
        contract = graph_contract(self.settings)
        vision, decoder = (Engine(trt, runtime, listener, bundle.file(PLANS[graph])) for graph in (VISION, DECODER))
        vision.check(*contract[VISION])
        decoder.check(*contract[DECODER])
        if decoder.profiles != 2:
            raise BundleError(f"{decoder.path}: {decoder.profiles} optimisation profiles, not 2; build it again")
        if vision.dtypes["visual_tokens"] != decoder.dtypes["visual_tokens"]:
            raise BundleError(f"{vision.path} gives visual tokens of another type than {decoder.path} takes")
        self._engines = runtime, vision, decoder  # contexts need them alive
        stream = self._device.stream
        self._see = vision.context(0, stream)
        self._prefill, self._decode = decoder.context(PREFILL, stream), decoder.context(DECODE, stream)
        graphs = self.settings.plan.cuda_graphs if self.settings.plan else 0
        if graphs and not decoder.shares_profiles:
            raise DeviceError(
                f"{decoder.path}: cuda_graphs = {graphs} needs TensorRT 10 or later, here is {trt.__version__}: set it "
                "to 0 in the device's spec and build the bundle again"
            )
        self._graphs = DecodeGraphs(self._device, self._decode, self._graph_context, graphs) if graphs else None

    def _graph_context(self) -> Context:
        """One more context of the decode profile."""
        context = self._engines[2].context(DECODE, self._device.stream)
        context.use_scratch(*self._scratch)
        return context

    def _make_buffers(self) -> None:
        device, s = self._device, self.settings
        _, vision, decoder = self._engines
        nbytes = max(vision.scratch_bytes, decoder.scratch_bytes, 1)
        self._scratch = device.alloc(nbytes), nbytes
        for context in (self._see, self._prefill, self._decode):
            context.use_scratch(*self._scratch)
        self._largest_image = vision.largest_inputs(*vision.inputs)
        self._image = Staging(device, self._largest_image)
        batch, kind = self._largest_image["pixels"][0][0], vision.dtypes["visual_tokens"]
        self._visual_shape: Shape = (1, s.cells**2, s.channels)
        self._seen = Returned(device, {"visual_tokens": ((batch, *self._visual_shape[1:]), kind)})
        self._foreign = Staging(device, {"visual_tokens": (self._visual_shape, kind)})
        self._no_tokens = self._foreign.upload({"visual_tokens": np.zeros(self._visual_shape)})["visual_tokens"]
        self._last_seen: npt.NDArray[Any] | None = None
        self._text = Staging(device, decoder.largest_inputs("input_ids", "visual_index", "position_ids"))
        results: dict[str, Shape] = {"next_ids": (1,), "logits": (1, s.vocab_size)}
        self._result = Returned(device, {name: (shape, decoder.dtypes[name]) for name, shape in results.items()})
        self._row: Shape = (s.layers, 2, 1, s.kv_heads, s.head_dim)
        self._row_bytes = int(np.prod(self._row)) * decoder.dtypes["past"].itemsize
        if self._row_bytes % ALIGNMENT or decoder.dtypes["past"] != decoder.dtypes["new"]:
            raise BundleError(
                f"{decoder.path}: a token takes {self._row_bytes} bytes of KV cache, in {decoder.dtypes['past']} and "
                f"{decoder.dtypes['new']}; TensorRT needs a multiple of {ALIGNMENT} and one type"
            )
        self._most_new = decoder.largest("input_ids", PREFILL)[1]
        self._most_rows = min(decoder.largest("past", profile)[0] for profile in (PREFILL, DECODE)) + 1
        self._retired: list[int] = []

    def vision(self, pixels: Floats, anchors: Floats, positions: Floats, mask: Floats) -> Floats:
        """As Backend says. The array is read-only and the tokens stay on the device too.

        `step` recognises the array of the last call, or a part of it, by its memory, and then uploads nothing.
        """
        feed = {"pixels": pixels, "anchors": anchors, "anchor_positions": positions, "anchor_mask": mask}
        for name, array in feed.items():
            most = self._largest_image[name][0]
            if array.ndim != len(most) or any(size > limit for size, limit in zip(array.shape, most, strict=True)):
                raise InputError(f"{name} of {array.shape} was given; this bundle's vision.plan takes up to {most}")
        with self._device:
            addresses = {**self._image.upload(feed), **self._seen.addresses}
            self._see.run({name: array.shape for name, array in feed.items()}, addresses)
            self._seen.fetch()
            self._device.synchronise()
        tokens: Floats = self._seen.host["visual_tokens"][: len(pixels)].copy()
        tokens.setflags(write=False)
        self._last_seen = tokens
        return tokens

    def new_cache(self, capacity: int) -> DeviceCache:
        """Device memory for `capacity` rows, given back when the cache has gone and another is made."""
        if not 0 < capacity <= self._most_rows:
            raise InputError(
                f"a KV cache of {capacity} tokens: this bundle's decoder.plan takes 1 to {self._most_rows}; build the "
                "bundle with more cache_tokens"
            )
        with self._device:
            while self._retired:
                self._device.free(self._retired.pop())
            address = self._device.alloc(capacity * self._row_bytes)
        cache = DeviceCache(capacity, self._row_bytes, address)
        # Whichever thread drops the cache only notes it: the memory is freed by the owner.
        weakref.finalize(cache, self._retired.append, address).atexit = False
        return cache

    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        """As Backend says. What is longer than the plan's prefill runs in parts, each of which waits once."""
        assert isinstance(cache, DeviceCache), "a cache of another backend"
        if visual_tokens.shape != self._visual_shape:
            raise InputError(f"visual tokens of {visual_tokens.shape} were given; a step takes {self._visual_shape}")
        tokens, start = input_ids.shape[1], cache.length
        cache.next_address(tokens)
        try:
            with self._device:
                visual = self._visual_address(visual_tokens, visual_index)
                for first in range(0, tokens, self._most_new):
                    part = slice(first, first + self._most_new)
                    feed = {"input_ids": input_ids[:, part], "visual_index": visual_index[:, part]}
                    self._run(cache, {**feed, "position_ids": position_ids[..., part]}, visual)
        except BaseException:
            cache.length = start
            raise
        return Step(self._result.host["logits"], self._result.host["next_ids"].copy())

    def _run(self, cache: DeviceCache, feed: dict[str, Int32], visual: int) -> None:
        tokens, past = feed["input_ids"].shape[1], cache.length
        shapes = {name: array.shape for name, array in feed.items()}
        shapes["visual_tokens"] = self._visual_shape
        shapes["past"] = (past, *self._row)
        addresses = {
            **self._text.upload(feed),
            **self._result.addresses,
            "visual_tokens": visual,
            "past": cache.address,  # for no rows too: an address of nothing may not be null
            "new": cache.next_address(tokens),
        }
        if not (tokens == 1 and past):
            self._prefill.run(shapes, addresses)
        elif self._graphs is None:
            self._decode.run(shapes, addresses)
        else:
            self._graphs.run(past, shapes, addresses)
        self._result.fetch()
        self._device.synchronise()
        cache.length += tokens

    def _visual_address(self, tokens: Floats, index: Int32) -> int:
        """Where on the device the visual tokens are: uploaded only if text is not all, and vision did not make them."""
        if not (index >= 0).any():
            return self._no_tokens
        seen = self._last_seen
        if seen is not None and tokens.dtype == seen.dtype and tokens.flags.c_contiguous:
            offset = tokens.ctypes.data - seen.ctypes.data
            inside = offset >= 0 and offset + tokens.nbytes <= seen.nbytes
            if inside and offset % ALIGNMENT == 0 and not tokens.flags.writeable:
                return self._seen.addresses["visual_tokens"] + offset
        return self._foreign.upload({"visual_tokens": tokens})["visual_tokens"]

    def close(self) -> None:
        """Give the GPU back; the backend, its caches and the logits of its steps must not be used any more."""
        held = [name for name in ("_graphs", "_see", "_prefill", "_decode", "_engines") if name in vars(self)]
        if held:
            with self._device:  # contexts, then engines, then what they stand on
                for name in held:
                    delattr(self, name)
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_plan(bundle: Bundle, tensorrt: str, facts: DeviceFacts) -> None:
    """BundleError where the plans were built for another TensorRT or GPU than this one."""
    plan = bundle.settings.plan
    if plan is None:
        raise BundleError(f"{bundle.folder}: its settings hold no facts of its plans; build it again")
    for what, built, found in (
        ("TensorRT", plan.tensorrt, tensorrt),
        ("compute capability", plan.compute_capability, facts.compute_capability),
    ):
        if built != found:
            raise BundleError(
                f"{bundle.folder} was built for {what} {built} ({plan.gpu}); here is {found} ({facts.name}). Plans run "
                "where they were built: build it on this device, by `fusar-edge build SPEC --onnx FOLDER --out BUNDLE`"
            )


def open_trt(bundle: Bundle, threads: int = 0) -> TrtBackend:
    """`threads` says nothing here: a GPU has its own. DeviceError or MissingExtraError say what this machine lacks."""
    trt = open_tensorrt()
    check_plan(bundle, trt.__version__, device_facts())
    plan = bundle.settings.plan
    return TrtBackend(bundle, trt, open_device("cuda-python" if plan and plan.cuda_graphs else "auto"))
