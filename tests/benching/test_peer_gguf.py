"""The GGUF file holds the decoder's weights under llama.cpp's names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fusar_edge.bench.peers.fp32_graph import fp32_models
from fusar_edge.bench.peers.gguf_file import gguf_file, write_gguf
from fusar_edge.bench.peers.weights import layer_weights
from fusar_edge.errors import BundleError
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return open_bundle("default")


def test_every_matrix_is_within_half_a_step_of_the_bundles(bundle: Bundle, tmp_path: Path) -> None:
    tensors = {t.name: t for t in gguf.GGUFReader(gguf_file(bundle, tmp_path)).tensors}
    weights = layer_weights(fp32_models(bundle)[1])
    assert len(tensors) == len(weights)
    for ours, theirs in (
        ("decoder.layers.2.self_attn.k_proj", "blk.2.attn_k"),
        ("decoder.layers.5.mlp.down_proj", "blk.5.ffn_down"),
        ("decoder.embed_tokens", "token_embd"),
        ("decoder.lm_head", "output"),
    ):
        wanted, held = weights[f"{ours}.weight"], tensors[f"{theirs}.weight"]
        found = gguf.quants.dequantize(held.data, held.tensor_type)
        blocks = np.abs(wanted.reshape(len(wanted), -1, 32)).max(-1, keepdims=True)
        bound = np.broadcast_to(blocks * (0.501 / 127 + 2**-11), (*blocks.shape[:2], 32)).reshape(wanted.shape)
        assert (np.abs(found - wanted) <= bound).all(), ours  # Q8_0's scale is FP16
    for ours, theirs in (
        ("decoder.norm.weight", "output_norm.weight"),
        ("decoder.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias"),
    ):
        np.testing.assert_array_equal(tensors[theirs].data, weights[ours])


def test_a_row_that_is_no_whole_number_of_blocks_is_refused_and_leaves_no_file(bundle: Bundle, tmp_path: Path) -> None:
    text = {
        "hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 48, "num_attention_heads": 1,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "mrope_section": [1, 1, 1],
    }  # fmt: skip
    settings = msgspec.structs.replace(bundle.settings, vocab_size=8)
    with pytest.raises(BundleError, match="rows of 48: Q8_0 needs a multiple of 32"):
        write_gguf(tmp_path / "x.gguf", settings, text, {"decoder.lm_head.weight": np.zeros((8, 48), np.float32)})
    assert not list(tmp_path.iterdir())
