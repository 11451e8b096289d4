"""A bundle's graphs -> the state dict of Hugging Face's Qwen2.5-VL, and TLM's.

Read by the role of each node (export/naming.py), not by the names of the weights: the exporter keeps one of several
equal tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.qdq import linears

if TYPE_CHECKING:
    from onnx import ModelProto

Weights = dict[str, npt.NDArray[np.float32]]

HUGGING_FACE = {
    "vision.": "model.visual.",
    "decoder.lm_head.": "lm_head.",
    "decoder.": "model.language_model.",
}
"""Prefix in the graphs -> prefix in the state dict. `tlm.` stays."""
PATCH = "vision.patch_embed.weight"


def layer_weights(model: ModelProto) -> Weights:
    """Layer's name + `.weight` or `.bias` -> array, of one graph in FP32; matrices are [out, in] as in PyTorch."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: Weights = {}

    def keep(name: str, tensor: str, transposed: bool = False) -> None:
        value = numpy_helper.to_array(constants[tensor])
        found[name] = np.array(value.T if transposed else value, order="C")  # a copy: the proto goes

    for linear in linears(model):
        keep(f"{linear.name}.weight", linear.weight, transposed=linear.axis == 1)
    for node in model.graph.node:
        layer, _, operator = node.name.partition("/")
        held = [name for name in node.input if name in constants]
        rows = [name for name in held if len(constants[name].dims) == 1]
        if node.op_type == "Conv" and rows:
            keep(f"{node.name}.bias", rows[0])
        elif node.op_type == "Gather" and held and len(constants[held[0]].dims) == 2:
            keep(f"{node.name}.weight", held[0])
        elif node.op_type in ("Add", "Mul") and rows and operator.startswith(node.op_type):
            keep(f"{layer}.{'bias' if node.op_type == 'Add' else 'weight'}", rows[0])
    return found


def state_dict_from(vision: Weights, decoder: Weights) -> Weights:
    """Keys of Hugging Face's Qwen2_5_VLForConditionalGeneration, and `tlm.` as in fusar_edge.model.tlm."""
    state: Weights = {}
    for name, value in {**vision, **decoder}.items():
        place = next((place for place in HUGGING_FACE if name.startswith(place)), "")
        state[HUGGING_FACE.get(place, "") + name.removeprefix(place)] = value
    folded, bias = (state.pop(f"model.visual.patch_embed.{kind}") for kind in ("weight", "bias"))
    state["model.visual.patch_embed.proj.weight"] = colour_patch_embedding(folded, bias)
    return state


def colour_patch_embedding(folded: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """A kernel [D, 3, 2, p, p] without bias that says on Hugging Face's normalised colours and frames what the folded
    one, [D, 1, p, p] and [D], says on grey (the inverse of fusar_edge.model.vision.grey_patch_embedding).

    Three colours are three unknowns for each pixel and there are fewer conditions: the mean of the colours carries the
    kernel, their differences from it the bias.
    """
    from fusar_edge.model.vision import IMAGE_MEAN, IMAGE_STD

    mean, std = np.array(IMAGE_MEAN), np.array(IMAGE_STD)
    kernel, pixels = folded[:, 0].astype(np.float64), folded[0, 0].size
    tilt = mean - mean.mean()  # sums to 0: adds nothing to the kernel
    lacking = -bias - mean.mean() * kernel.sum((1, 2))
    share = lacking / (pixels * (mean @ tilt))
    scaled = kernel[:, None] / 3 + share[:, None, None, None] * tilt[:, None, None]
    colours = scaled * std[:, None, None]
    return np.repeat(colours[:, :, None] / 2, 2, axis=2).astype(np.float32)
