"""The stand-in for a published base: loadable, of the published shapes, the same each time, shard by shard."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch
from official_files import hugging_face, recipe_on
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2_5_VLConfig

from fusar_edge.errors import InputError
from fusar_edge.model.weights import module_shapes, open_weights, tied
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
FOLDER = Path(__file__).parents[2] / "tools" / "full_size"


@pytest.fixture(scope="module")
def tool() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("random_base", FOLDER / "random_base.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def run(tool: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(tool, "write_tokenizer", lambda path, ranks: path.write_text("{}"))
    monkeypatch.setattr(tool, "SHARD_BYTES", 20_000_000)
    monkeypatch.setattr(sys, "argv", ["random_base.py", *words])
    tool.main()


def test_a_small_base_and_its_adapter_load_as_published_ones(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    run(tool, monkeypatch, str(base), "--like", "small", "--adapter", str(adapter), "--vision-lora")
    assert len(list(base.glob("*.safetensors"))) == 2
    keys = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert {"visual.blocks.0.attn.qkv.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"} < set(keys)
    model = hugging_face(base)
    norm, embedding = model.model.language_model.norm.weight, model.get_input_embeddings().weight
    assert abs(float(norm.mean()) - 1) < 0.02
    assert 0 < float(norm.std()) < 0.05
    assert float(embedding.std()) == pytest.approx(0.02, rel=0.02)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    weights = open_weights(adapter, recipe_on(base, 504))
    for name, value in merged.items():
        torch.testing.assert_close(weights.tensor(name), value, atol=1e-5, rtol=1e-5)
    assert "base_model.model.model.visual.blocks.0.attn.qkv.lora_B.weight" in load_file(
        adapter / "adapter_model.safetensors"
    )


def test_a_shard_that_was_lost_is_made_again_as_it_was(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    run(tool, monkeypatch, str(base), "--like", "small", "--seed", "3")
    first, second = sorted(base.glob("*.safetensors"))
    before, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    run(tool, monkeypatch, str(base), "--like", "small", "--seed", "3")
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == kept
    with pytest.raises(SystemExit, match="holds something else"):
        run(tool, monkeypatch, str(base), "--like", "small", "--seed", "4")


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = argparse.Namespace(free=1 << 30)
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"2.0 GB are to be written, 1.1 GB are free"):
        tool._check_room(tmp_path / "a" / "b", 2_000_000_000)
    with pytest.raises(SystemExit, match="give another disk"):
        run(tool, monkeypatch, str(tmp_path / "base"), "--like", "small")
    assert not list(tmp_path.rglob("*.safetensors"))


# Hugging Face's count of parameters of the published models, in 1e9: 8.29 and 3.75 (their model cards).
@pytest.mark.parametrize(("like", "billions", "is_tied"), [("7b", 8.29, False), ("3b", 3.75, True)])
def test_the_shapes_are_those_of_the_published_models(tool: Any, like: str, billions: float, is_tied: bool) -> None:
    config = Qwen2_5_VLConfig(**tool.published_config(like))
    assert tied(config) == is_tied
    config.fusar = {"image_size": 504, "sigma": 2.0, "hidden_mult": 4}
    shapes = module_shapes(config)
    counted = {n: s for n, s in shapes.items() if not n.startswith("tlm.") and not (is_tied and n == "lm_head.weight")}
    total = sum(int(torch.Size(shape).numel()) for shape in counted.values())
    assert total / 1e9 == pytest.approx(billions, abs=0.01)
    assert config.text_config.rope_scaling["mrope_section"] == [16, 24, 24]
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (151643, 151645)
    recipe, _ = load_recipe("export", f"fusar-gpt-{like}", ModelRecipe)
    assert msgspec.structs.asdict(recipe)["base"] == f"Qwen/Qwen2.5-VL-{like.upper()}-Instruct"


def test_the_special_tokens_stand_at_the_published_ids(tool: Any) -> None:
    ids = {token: 151643 + index for index, (token, _) in enumerate(tool.TOKENS)}
    assert len(ids) == 22
    published = {
        "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
        "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "<|file_sep|>": 151664,
    }  # fmt: skip
    assert published.items() <= ids.items()
