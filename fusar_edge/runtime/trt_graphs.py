"""CUDA graphs of the decode step: one launch in place of one for each kernel. Off unless the spec asks. No GPU ran it.

A captured graph holds for one shape and one set of addresses, and with every token `past` is a row longer and `new` a
row further. But all answers about all images start after the same prefix, in the same buffer: the same lengths come
again and again, so a graph is kept for each. NVIDIA's guide (Best Practices, CUDA graphs) wants a context of its own
for each captured graph, sharing one scratch memory, and one plain run after a change of shape before the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusar_edge.errors import DeviceError
from fusar_edge.runtime.device import Device
from fusar_edge.runtime.staging import Shape
from fusar_edge.runtime.trt_engine import Context


@dataclass(frozen=True, slots=True)
class _Graph:
    context: Context
    addresses: dict[str, int]
    launch: Callable[[], None]


class DecodeGraphs:
    """At most `most` graphs, by the number of cached rows; other lengths run in `plain`, kernel by kernel."""

    def __init__(self, device: Device, plain: Context, new_context: Callable[[], Context], most: int) -> None:
        """`new_context` makes a context of the decode profile that has its scratch memory."""
        self._device, self._plain, self._new_context, self._most = device, plain, new_context, most
        self._graphs: dict[int, _Graph] = {}

    def run(self, past: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Enqueue one step after `past` rows. The stream must have been waited for since the last one."""
        graph = self._graphs.get(past)
        if graph is not None and graph.addresses == addresses:
            graph.launch()
        elif graph is None and len(self._graphs) >= self._most:
            self._plain.run(shapes, addresses)
        else:
            self._keep(past, shapes, addresses)

    def _keep(self, past: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Run the step plainly, which is what this call is for, then capture it for the next time."""
        old = self._graphs.pop(past, None)
        context = old.context if old else self._new_context()
        context.run(shapes, addresses)
        try:
            launch = self._device.record(lambda: context.run(shapes, addresses))
        except DeviceError as problem:
            raise DeviceError(
                f"the decode step cannot be captured as a CUDA graph ({problem}): set cuda_graphs = 0 in the device's "
                "spec and build the bundle again"
            ) from None
        self._graphs[past] = _Graph(context, dict(addresses), launch)
