"""What TensorRT-RTX 1.7 logs of an engine that it built on no GPU: kernels with their types, scratch, weights.

The engine inspector would need a GPU. The text is that of one version; what is not found is None or empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_ROW = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: ")
_SUFFIX = re.compile(r"( \[profile \d+\])?(_myl\d+_\d+)?$")
PRODUCTS = ("gemm", "correlation", "convolution", "runtime_fusion")
"""Kinds of layers that multiply."""


@dataclass(frozen=True)
class Kernels:
    """One engine, all of its profiles."""

    int8: frozenset[str]
    """Names of the graph's nodes whose product reads INT8. Nodes that share a kernel are each named."""
    floating: frozenset[str]
    """Those whose product reads floating point."""
    scratch_bytes: int | None
    """Activations and scratch of one execution context, at the largest shapes of its largest profile."""
    weight_bytes: int | None
    """Weights of all profiles."""


def kernels(messages: Iterable[str]) -> Kernels:
    """Read the verbose messages of one build."""
    int8: set[str] = set()
    floating: set[str] = set()
    scratch: list[int] = []
    weights: list[int] = []
    for message in messages:
        if message.startswith("Layers:"):
            for name, reads_int8 in _products(message):
                (int8 if reads_int8 else floating).add(name)
        scratch += _bytes("Total Activation Memory", message)
        weights += _bytes("Total Weights Memory", message)
    return Kernels(frozenset(int8), frozenset(floating), max(scratch, default=None), max(weights, default=None))


def _products(text: str) -> Iterator[tuple[str, bool]]:
    for line in text.splitlines():
        row = _ROW.match(line)
        if row and row["kind"] in PRODUCTS:
            for name in row["name"].split("+"):
                yield _SUFFIX.sub("", name), "Datatype: Int8" in row["inputs"]


def _bytes(label: str, message: str) -> list[int]:
    found = re.match(rf"{label}: (\d+) bytes", message)
    return [int(found[1])] if found else []
