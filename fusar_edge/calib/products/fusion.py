"""What ONNX Runtime makes of a Q/DQ graph. INT8 is faster than FP32 only where a linear fuses with its Q/DQ nodes."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

INT8_KERNELS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "QLinearConv", "DynamicQuantizeMatMul")


def optimised_ops(onnx_path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime's CPU engine executes -> how many."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        onnxruntime.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def fused_linears(onnx_path: Path) -> int:
    """Linears that run on an INT8 kernel."""
    ops = optimised_ops(onnx_path)
    return sum(ops[kernel] for kernel in INT8_KERNELS)
