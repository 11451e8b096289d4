"""Published configurations of Qwen2.5-VL-Instruct, and a small one of the same architecture."""

from __future__ import annotations

from typing import Any


def published_config(like: str) -> dict[str, Any]:
    """`config.json` as on the hub, of `7b`, `3b` or `small`."""
    text, out, sections, vision = _SIZES[like]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": out,
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        **text,
        "vision_config": {
            "hidden_act": "silu",
            "in_chans": 3,
            "out_hidden_size": out,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }


GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}

# (token, whether it is special), from id 151643 on.
TOKENS = (
    *((f"<|{name}|>", True) for name in (
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
        "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
    )),
    ("<tool_call>", False), ("</tool_call>", False),
    *((f"<|{name}|>", False) for name in (
        "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep",
    )),
)  # fmt: skip

_TOWER = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_SMALL_TOWER = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "window_size": 112,
    "fullatt_block_indexes": [1],
}  # fmt: skip

_SIZES: dict[str, tuple[dict[str, Any], int, list[int], dict[str, Any]]] = {
    "7b": (
        {
            "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "max_window_layers": 28, "vocab_size": 152064, "tie_word_embeddings": False,
        },
        3584, [16, 24, 24], _TOWER,
    ),
    "3b": (
        {
            "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
            "max_window_layers": 70, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        2048, [16, 24, 24], _TOWER,
    ),
    "small": (
        {
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_window_layers": 2, "vocab_size": 151936, "tie_word_embeddings": False,
        },
        64, [2, 3, 3], _SMALL_TOWER,
    ),
}  # fmt: skip
