"""Quantises one small graph with nvidia-modelopt: the files in tests/calib/golden.

    /tmp/modelopt/bin/python tools/int8/golden_from_modelopt.py --out tests/calib/golden

(with_modelopt.py says how to make that environment.) Tests take the graph and its feeds from here, so that both sides
see the same numbers. Written: modelopt-max.onnx whole, and of each run in `RUNS` the activations' scales.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from with_modelopt import Feeds, quantised_file

BATCHES, IMAGES = 8, 128
OUTLIER = 60.0
"""One pixel; all others are below 20."""
RUNS = {
    "max": ("max", False),
    "entropy": ("entropy", False),
    "entropy, outlier first": ("entropy", True),
    "percentile": ("percentile", False),
}
"""Name -> (calibration_method, whether the batch with the outlier comes first)."""


def small_graph() -> onnx.ModelProto:
    """A Conv, two MatMul and a Gemm (transB); 16 wide or more, since modelopt leaves out what is narrower.

    x [B, 1, 8, 8] -> patches [B, 16, 2, 2] -> tokens [4 B, 16] -> hidden [4 B, 32] -> wide [4 B, 32] -> y [4 B, 24]
    """
    draw = _numbers(20)
    weights = {
        "kernel": draw.normal(size=(16, 1, 4, 4)),
        "first": draw.normal(size=(16, 32)),
        "first_bias": draw.normal(size=32),
        "second": draw.standard_t(3, size=(32, 32)),
        "head": draw.normal(size=(24, 32)),
    }
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 16]), "rows"))
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["patches"], "conv", strides=[4, 4]),
        helper.make_node("Transpose", ["patches"], ["last"], "transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "rows"], ["tokens"], "reshape"),
        helper.make_node("MatMul", ["tokens", "first"], ["product"], "first"),
        helper.make_node("Add", ["product", "first_bias"], ["sum"], "first/add"),
        helper.make_node("Relu", ["sum"], ["hidden"], "relu"),
        helper.make_node("MatMul", ["hidden", "second"], ["wide"], "second"),
        helper.make_node("Gemm", ["wide", "head"], ["y"], "head", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 24])
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    model.ir_version = 9
    return model


def feeds() -> list[Feeds]:
    """Like speckle, a little brighter from batch to batch; the outlier is in the middle."""
    batches = _numbers(21).exponential(size=(BATCHES, IMAGES, 1, 8, 8))
    batches *= np.linspace(0.8, 1.2, BATCHES)[:, None, None, None, None]
    batches[BATCHES // 2, 0, 0, 0, 0] = OUTLIER
    return [{"x": batch.astype(np.float32)} for batch in batches]


def outlier_first() -> list[Feeds]:
    return [*feeds()[BATCHES // 2 :], *feeds()[: BATCHES // 2]]


def activation_scales(model: onnx.ModelProto) -> dict[str, float]:
    """Tensor that a QuantizeLinear reads -> its scale; weights left out."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"
    }
    pairs = [node.input for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {tensor: float(constants[scale]) for tensor, scale, *_ in pairs if constants[scale].ndim == 0}


def _numbers(seed: int) -> np.random.RandomState:
    """NumPy froze this generator's stream; that of `default_rng` may change."""
    return np.random.RandomState(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that is written to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    scales = {}
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "small.onnx"
        onnx.save(small_graph(), source)
        for name, (method, first) in RUNS.items():
            result = folder / "modelopt-max.onnx" if name == "max" else Path(work) / "result.onnx"
            quantised_file(source, result, method, outlier_first() if first else feeds())
            scales[name] = activation_scales(onnx.load(result))
    (folder / "modelopt-scales.json").write_text(json.dumps(scales, indent=1) + "\n")


if __name__ == "__main__":
    main()
