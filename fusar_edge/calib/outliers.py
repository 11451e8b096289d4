"""Input channels far larger than the rest, multiplied in float beside the INT8 product.

    y = Q(x) Q(W with zero rows at the outliers) + x[outliers] W[outliers]

One range for a tensor has to hold its largest channel, and all others get what is left of 127 levels. Where a norm or a
linear stands before, SmoothQuant folds the difference away (fusar_edge.calib.smoothquant). Behind a GELU or SiLU
nothing can be folded: there the few large channels leave the INT8 product (as in LLM.int8(), Dettmers et al., NeurIPS
2022, but chosen at calibration). The range is then that of the other channels; an outlier that is clipped meets a
weight of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.specs import OutlierSpec

if TYPE_CHECKING:
    from onnx import NodeProto

    from fusar_edge.calib.qdq import Constants

Channels = npt.NDArray[np.int64]
SUFFIX = ".outliers"
"""Of the float product's node, behind its layer's name."""


@dataclass(frozen=True)
class Split:
    """A linear with outliers."""

    channels: Channels
    """Input channels that are multiplied in float, rising."""
    largest: float
    """|x| of all other channels that becomes 127."""


def outlier_channels(largest: npt.NDArray[np.floating[Any]], spec: OutlierSpec) -> Channels:
    """Of the largest |x| of each channel [K]: those beyond `ratio` times the median, the largest `share` of them."""
    room = max(1, int(spec.share * len(largest)))
    order = np.argsort(-largest, kind="stable")[:room]
    return np.sort(order[largest[order] > spec.ratio * np.median(largest)]).astype(np.int64)


def float_product(node: NodeProto, split: Split, constants: Constants) -> list[NodeProto]:
    """The nodes that follow the INT8 product of `node`, a MatMul, and add the float one to it; its output is renamed.

    Its weight still has the outliers' rows: `without_rows` takes them out.
    """
    from onnx import helper

    assert node.op_type == "MatMul", f"{node.name} is no MatMul, whose channels are the last axis"
    name, weight = f"{node.name}{SUFFIX}", node.input[1]
    constants.put(f"{name}.channels", lambda: split.channels)
    constants.put(f"{name}.weight", lambda: constants.weight(weight)[split.channels])
    whole, few = f"{node.name}.inliers_output", f"{name}_input"
    nodes = [
        helper.make_node("Gather", [node.input[0], f"{name}.channels"], [few], f"{name}/Gather", axis=-1),
        helper.make_node("MatMul", [few, f"{name}.weight"], [f"{name}_output"], name),
        helper.make_node("Add", [whole, f"{name}_output"], [node.output[0]], f"{name}/Add"),
    ]
    node.output[0] = whole
    return nodes


def without_rows(weight: npt.NDArray[np.float32], split: Split) -> npt.NDArray[np.float32]:
    """`weight` [in, out] with zeros for the outliers."""
    rest = weight.copy()
    rest[split.channels] = 0
    return rest


def with_outliers(weight: npt.NDArray[Any], layer: str, constants: Mapping[str, Any]) -> npt.NDArray[Any]:
    """`weight` [in, out] of a layer in float, with the rows that were taken out put back; as it is without any."""
    from onnx import numpy_helper

    if f"{layer}{SUFFIX}.weight" not in constants:
        return weight
    rows, channels = (numpy_helper.to_array(constants[f"{layer}{SUFFIX}.{part}"]) for part in ("weight", "channels"))
    whole = weight.copy()
    whole[channels] = rows
    return whole
