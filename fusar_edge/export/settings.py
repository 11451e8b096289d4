"""What a bundle needs to know of the graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusar_edge.anchors.codes import BANDS
from fusar_edge.data.truth import COORDINATE_SIZE
from fusar_edge.export.baking.bake import Baked
from fusar_edge.model.adapted import Branch
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.specs import ModelRecipe


def settings(
    model: FusarForConditionalGeneration, recipe: ModelRecipe, baked: Baked | None = None, branch: Branch | None = None
) -> dict[str, Any]:
    """Names as in fusar_edge.runtime.bundle.BundleSettings. `model` may be on the meta device."""
    config, text = model.config, model.config.text_config
    attention = model.model.language_model.layers[0].self_attn
    ends = np.unique(
        [i for ids in (text.eos_token_id, text.bos_token_id) if ids is not None for i in np.atleast_1d(ids)]
    )
    adapters = {} if branch is None else {"adapters": {"active": branch.name, "exported": branch.name}}
    return adapters | {
        "name": recipe.name,
        "image_size": config.fusar["image_size"],
        "cells": model.cells,
        "channels": text.hidden_size,
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "kv_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "vocab_size": model.lm_head.weight.shape[0],
        "eos_ids": [int(i) for i in ends],
        "image_token_id": config.image_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "anchor_nodes": recipe.anchor_nodes,
        "anchors": baked.form if baked else {"form": "codes", "bands": BANDS},
        "coordinate_size": COORDINATE_SIZE,
        "opset": recipe.export.opset,
    }
