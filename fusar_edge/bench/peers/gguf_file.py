"""The decoder of a bundle as a GGUF file for llama.cpp: architecture `qwen2vl`, matrices in Q8_0, the rest in FP32.

`qwen2vl` is llama.cpp's Qwen2 with the three rotary axes of Qwen2.5-VL. The file has no vocabulary: tokens go in and
come out as ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.bench.peers.architecture import architecture_from
from fusar_edge.bench.peers.fp32_graph import fp32_models
from fusar_edge.bench.peers.weights import Weights, layer_weights
from fusar_edge.errors import BundleError
from fusar_edge.manifest import output_file
from fusar_edge.runtime.bundle import Bundle, BundleSettings

BLOCK = 32
"""Numbers of a row that share a scale in Q8_0."""

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Our layer, below decoder.layers.N -> llama.cpp's, below blk.N."""
TOP = {"decoder.embed_tokens": "token_embd", "decoder.norm": "output_norm", "decoder.lm_head": "output"}


def gguf_file(bundle: Bundle, work: Path) -> Path:
    """The file in `work`; made once for each bundle."""
    path = work / f"decoder-{bundle.sha256[:16]}.q8_0.gguf"
    if path.is_file():
        return path
    graphs = fp32_models(bundle)
    vision, decoder = (layer_weights(graph) for graph in graphs)
    text = architecture_from(bundle.settings, graphs, (vision, decoder)).text
    with output_file(path) as made:
        write_gguf(made, bundle.settings, text, decoder)
    return path


def write_gguf(path: Path, settings: BundleSettings, text: dict[str, Any], weights: Weights) -> None:
    """`weights` of the decoder graph by our names; BundleError where a row is no whole number of blocks."""
    import gguf

    writer = gguf.GGUFWriter(path, "qwen2vl")
    writer.add_context_length(settings.context_tokens)
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_rope_dimension_sections([*text["mrope_section"], 0])
    writer.add_vocab_size(settings.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, value in weights.items():
        if value.ndim == 1:
            writer.add_tensor(_gguf_name(name), value.astype(np.float32))
        elif value.shape[1] % BLOCK:
            raise BundleError(f"{name} has rows of {value.shape[1]}: Q8_0 needs a multiple of {BLOCK}")
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    """decoder.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    layer, _, kind = name.rpartition(".")
    if layer in TOP:
        return f"{TOP[layer]}.{kind}"
    _, _, number, inner = layer.split(".", 3)
    return f"blk.{number}.{NAMES[inner]}.{kind}"
