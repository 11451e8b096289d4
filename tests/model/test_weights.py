"""Weights tensor by tensor against Hugging Face's `from_pretrained` and PEFT's `merge_and_unload`; every refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_files as files
import pytest
import torch
from official_files import (
    adapter_on,
    copied,
    hugging_face,
    published,
    recipe_on,
    rewrite_film,
    rewrite_json,
    rewrite_lora,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_model import random_model

from fusar_edge.errors import CheckpointError
from fusar_edge.manifest import Manifest, sha256_file, write_manifest
from fusar_edge.model import hub
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.shards import shards_of
from fusar_edge.model.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_on(base, tmp_path_factory.mktemp("weights") / "adapter")


# What is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("old", "shards", "dtype"), [(True, 1, torch.float32), (False, 3, torch.bfloat16), (True, 2, torch.float16)]
)
def test_a_base_reads_as_hugging_face_reads_it(tmp_path: Path, tied: bool, old: bool, shards: int, dtype: Any) -> None:
    base = published(tmp_path / "base", tied=tied, old=old, shards=shards, dtype=dtype)
    expected = hugging_face(base).state_dict()
    weights = open_weights("base", recipe_on(base))
    assert {n for n in weights.names if not n.startswith("tlm.")} == set(expected)
    for name, value in expected.items():
        found = weights.tensor(name)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert weights.shape(name) == tuple(found.shape) == tuple(value.shape)
        assert torch.equal(found, value), name
    assert torch.equal(weights.tensor(HEAD), weights.tensor(EMBEDDING)) == tied
    assert weights.config.fusar == {"image_size": 140, "sigma": 2.0, "hidden_mult": 4}


LORAS: dict[str, dict[str, Any]] = {
    "language": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 5}},
    "vision": {"target_modules": [*files.LANGUAGE, "qkv", "proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", LORAS)
def test_a_merged_lora_is_what_peft_merges(tmp_path: Path, kind: str, old: bool) -> None:
    base = published(tmp_path / "base", tied=kind != "head")
    adapter = adapter_on(base, tmp_path / "adapter", old=old, **LORAS[kind])
    before = hugging_face(base).state_dict()
    expected = PeftModel.from_pretrained(hugging_face(base), str(adapter)).merge_and_unload().state_dict()
    weights = open_weights(adapter, recipe_on(base))
    for name, value in expected.items():
        torch.testing.assert_close(weights.tensor(name), value, atol=1e-5, rtol=1e-5)
    moved = {name for name in expected if not torch.allclose(before[name], expected[name])}
    language, tower = 2 * 7, 3 * 3  # seven linears of a layer, of which the tower's blocks have three by name
    assert len(moved) == {"head": 2 + 1, "vision": language + tower + 3 * 2 + 1}.get(kind, language + tower)


@pytest.mark.parametrize("name", [Q_PROJ, EMBEDDING, HEAD, "tlm.film_mlp.2.weight", "model.language_model.norm.weight"])
def test_rows_are_those_of_the_whole_tensor(base: Path, adapter: Path, name: str) -> None:
    weights = open_weights(adapter, recipe_on(base))
    torch.testing.assert_close(weights.rows(name, 7, 30), weights.tensor(name)[7:30], atol=1e-6, rtol=1e-6)


def test_what_is_read_can_be_changed_without_changing_the_file(base: Path, adapter: Path) -> None:
    weights = open_weights(adapter, recipe_on(base))
    for name in (Q_PROJ, EMBEDDING, "tlm.film_mlp.0.weight"):
        before = weights.tensor(name)
        weights.tensor(name).zero_()
        assert torch.equal(weights.tensor(name), before)
        assert before.abs().max() > 0


def test_the_size_counts_a_tied_head_once(tmp_path: Path) -> None:
    for tied in (True, False):
        base = published(tmp_path / f"tied-{tied}", tied=tied)
        weights = open_weights("base", recipe_on(base))
        model = FusarForConditionalGeneration(weights.config)
        assert weights.bytes_fp32() == 4 * sum(p.numel() for p in model.parameters())


def test_tlm_comes_from_its_file_and_is_the_identity_where_there_is_none(base: Path, tmp_path: Path) -> None:
    full = open_weights(adapter_on(base, tmp_path / "full"), recipe_on(base)).tlm_state()
    for key, value in files.random_film().items():
        assert torch.equal(full[key], value)
    for checkpoint in ("base", adapter_on(base, tmp_path / "bare", film=False)):
        state = open_weights(checkpoint, recipe_on(base)).tlm_state()
        assert {k: tuple(v.shape) for k, v in state.items()} == {k: tuple(v.shape) for k, v in full.items()}
        assert state["2.weight"].abs().max() == state["2.bias"].abs().max() == 0
        assert state["0.weight"].std() > 0.01  # or stage 1 could not begin


def test_a_folder_of_tlm_alone_leaves_the_base_as_it_is(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("vec64_film.pt", "tlm_config.json"):
        (tmp_path / name).write_bytes((adapter / name).read_bytes())
    weights = open_weights(tmp_path, recipe_on(base))
    assert torch.equal(weights.tensor(Q_PROJ), hugging_face(base).state_dict()[Q_PROJ])
    assert torch.equal(weights.tlm_state()["2.bias"], files.random_film()["2.bias"])


def test_a_legacy_folder_takes_its_sigma_from_the_caller(tmp_path: Path) -> None:
    base = published(tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", legacy=True)
    weights = open_weights(adapter, recipe_on(base, 504), sigma=2)
    assert weights.config.fusar == {"image_size": 504, "sigma": 2.0, "hidden_mult": 4}
    with pytest.raises(CheckpointError, match=r"give --sigma 2"):
        open_weights(adapter, recipe_on(base, 504))
    with pytest.raises(CheckpointError, match=r"sigma 3, the recipe small says 2"):
        open_weights(adapter, recipe_on(base, 504), sigma=3)
    with pytest.raises(CheckpointError, match=r"image_size 504, the recipe small says 140"):
        open_weights(adapter, recipe_on(base), sigma=2)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model as `train` writes it."""
    folder = tmp_path_factory.mktemp("weights") / "own"
    random_model(recipe_on(None)).save_pretrained(folder, max_shard_size="300KB")
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, Manifest(stage="stage2", inputs={"parent": "7" * 64}))
    return folder


def test_a_folder_of_train_reads_as_hugging_face_reads_it(own: Path) -> None:
    assert (own / "model.safetensors.index.json").is_file()
    expected = FusarForConditionalGeneration.from_pretrained(own, dtype=torch.float32).state_dict()
    weights = open_weights(own, recipe_on(None))
    assert weights.names == set(expected)
    for name, value in expected.items():
        assert torch.equal(weights.tensor(name), value), name
    assert weights.manifest is not None
    assert weights.manifest.stage == "stage2"


def test_every_file_that_counts_is_hashed(base: Path, adapter: Path, own: Path) -> None:
    told: list[Any] = []
    found = open_weights(adapter, recipe_on(base)).hashes(lambda *step: told.append(step))
    assert set(found) == {
        "base/config.json", "base/tokenizer.json", "base/model.safetensors", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "adapter/vec64_film.pt", "adapter/tlm_config.json",
    }  # fmt: skip
    for name, value in found.items():
        assert value == sha256_file({"base": base, "adapter": adapter}[name.split("/")[0]] / name.split("/")[1])
    assert told[0][0] == 0
    sizes = [({"base": base, "adapter": adapter}[n.split("/")[0]] / n.split("/")[1]).stat().st_size for n in found]
    assert told[-1][0] == told[-1][1] == sum(sizes)
    whole = open_weights(own, recipe_on(None)).hashes()
    assert whole["parent/parent"] == "7" * 64
    assert {n for n in whole if n.endswith(".safetensors")} == {
        f"checkpoint/{p.name}" for p in own.glob("*.safetensors")
    }


# Memory -------------------------------------------------------------------------------------------------------------


def test_reading_one_tensor_leaves_the_rest_of_a_big_file_on_the_disk(tmp_path: Path) -> None:
    rows, columns = 1 << 18, 1 << 10  # 1 GiB, of which the file system stores nothing
    header = {
        "huge": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]},
        "small": {"dtype": "F32", "shape": [8, 8], "data_offsets": [4 * rows * columns, 4 * rows * columns + 256]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 4 * rows * columns + 256)
    shards = shards_of([path])
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        pytest.skip("no /proc/self/clear_refs to reset the peak of memory with")
    before = _status("VmHWM")
    kept = shards.tensor("small"), shards.tensor("huge", 1000, 3000)
    assert kept[1].shape == (2000, columns)
    assert _status("VmHWM") - before < 64 << 10
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert not any(os.path.realpath(f"/proc/self/fd/{n}") == str(path) for n in os.listdir("/proc/self/fd"))


def _status(key: str) -> int:
    """KiB."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


# What is refused ----------------------------------------------------------------------------------------------------

Change = Callable[[Path], None]


def _lora(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder: rewrite_lora(folder, lambda held: change(held) or held)


def _film(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda folder: rewrite_film(folder, lambda held: change(held) or held)


def _said(**values: Any) -> Change:
    return lambda folder: rewrite_json(folder / "adapter_config.json", **values)


def _tlm(**values: Any) -> Change:
    return lambda folder: rewrite_json(folder / "tlm_config.json", **values)


A = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def _nan(value: torch.Tensor) -> None:
    value.view(-1)[-1] = float("nan")


def _inf(value: torch.Tensor) -> None:
    value.view(-1)[-1] = float("-inf")


def _put(key: str, value: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update({key: value})


REFUSED: dict[str, tuple[Change, str]] = {
    "a LoRA of another width": (
        _lora(_put(A, torch.zeros(4, 96))),
        rf"{re.escape(A)} makes a weight \[64, 96\], .*base has \[64, 64\].*recipe of its base",
    ),
    "a LoRA of two ranks": (_lora(_put(B, torch.zeros(64, 3))), r"not of one rank"),
    "another rank than the configuration's": (_said(r=8), r"has rank 4, adapter_config.json says 8"),
    "a LoRA of no module": (
        _lora(lambda h: {k.replace("layers.1", "layers.7"): v for k, v in h.items()}),
        r"layers\.7\.\S+ names no module",
    ),
    "lora_A alone": (
        _lora(lambda h: {k: v for k, v in h.items() if k != B}),
        rf"no {re.escape(B)}",
    ),
    "lora_B alone": (_lora(lambda h: {k: v for k, v in h.items() if k != A}), rf"no {re.escape(A)}"),
    "a LoRA on a norm": (
        _lora(
            lambda h: {
                k.replace("self_attn.q_proj", "input_layernorm"): v
                for k, v in h.items()
                if ".1." in k and "q_proj" in k
            }
        ),
        r"is on a weight \[64\]; linears and",
    ),
    "one module under two names": (
        _lora(
            lambda h: h.update(
                {k.replace("model.language_model.", "model."): v.clone() for k, v in h.items() if k in (A, B)}
            )
        ),
        r"of one module: keep one",
    ),
    "a whole module beside the LoRA": (
        _lora(_put("base_model.model.lm_head.weight", torch.zeros(1))),
        r"holds base_model.model.lm_head.weight; allowed",
    ),
    "an empty LoRA": (_lora(lambda h: {"x": torch.zeros(1)}), r"holds x; allowed"),
    "NaN in a LoRA": (_lora(lambda h: _nan(h[B])), rf"{re.escape(B)} holds NaN"),
    "infinity in a LoRA": (_lora(lambda h: _inf(h[A])), rf"{re.escape(A)} holds NaN or inf"),
    "DoRA": (_said(use_dora=True), r"use_dora = true is not supported"),
    "PiSSA": (_said(init_lora_weights="pissa"), r'init_lora_weights = "pissa"'),
    "trained biases": (_said(bias="all"), r'bias = "all"'),
    "a setting of a later PEFT": (_said(use_new_thing=1), r"use_new_thing = 1"),
    "IA3": (_said(peft_type="IA3"), r"peft_type 'IA3'; allowed is 'LORA'"),
    "no rank": (_said(r=None), r"r None; it is a number"),
    "a pattern of ranks that is no regular expression": (
        _said(rank_pattern={"q_proj(": 4}),
        r"adapter_config.json: rank_pattern has 'q_proj\(', which is no regular expression: missing \)",
    ),
    "a list of alphas": (_said(alpha_pattern=["q_proj"]), r'adapter_config.json: alpha_pattern \["q_proj"\]; allowed'),
    "an alpha that is no number": (
        _said(alpha_pattern={"q_proj": "8"}),
        r"alpha_pattern has .8. for \S+; it is a",
    ),
    "a configuration that is no JSON": (
        lambda f: (f / "adapter_config.json").write_text("{") and None,
        r"no PEFT configuration",
    ),
    "no adapter weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"no adapter_model.safetensors"),
    "no adapter configuration": (lambda f: (f / "adapter_config.json").unlink(), r"no adapter_config.json: copy"),
    "half an adapter file": (
        lambda f: os.truncate(f / "adapter_model.safetensors", 4000),
        r"adapter_model.safetensors is no whole safetensors",
    ),
    "a film without a key": (
        _film(lambda h: h.pop("2.bias") is None),
        r"film_mlp has 0.weight, 0.bias, 2.weight; allowed",
    ),
    "a film with another key": (_film(_put("3.bias", torch.zeros(1))), r"3\.bias; allowed"),
    "a film of another width": (
        _film(lambda h: files.random_film(48, 192)),
        r"film_mlp.0.weight is \[192, 64\].*\[256, 64\]",
    ),
    "a film that holds no tensors": (_film(_put("0.bias", 3)), r"film_mlp.0.bias is not a tensor"),  # type: ignore[arg-type]
    "NaN in a film": (_film(lambda h: _nan(h["2.weight"])), r"film_mlp.2.weight holds NaN"),
    "infinity in a film": (_film(lambda h: _inf(h["0.bias"])), r"film_mlp.0.bias holds NaN or inf"),
    "no film beside its settings": (lambda f: (f / "vec64_film.pt").unlink(), r"tlm_config.json and no vec64_film.pt"),
    "a film that is no file of torch": (
        lambda f: (f / "vec64_film.pt").write_bytes(b"film") and None,
        r"not a file of tensors",
    ),
    "a film that is cut": (lambda f: os.truncate(f / "vec64_film.pt", 9000), r"vec64_film.pt is not a file of tensors"),
    "a film under another key": (
        lambda f: torch.save(files.random_film(), f / "vec64_film.pt"),
        r"0\.weight, .* allowed is",
    ),
    "another format of TLM": (_tlm(format="tlm_v2"), r"format 'tlm_v2'; allowed is 'tlm_original"),
    "another sigma": (_tlm(sigma=3.0), r"tlm_config.json has sigma 3, the recipe small says 2"),
    "another image size": (_tlm(image_size=504), r"image_size 504, the recipe small says 140"),
    "another hidden width": (_tlm(hidden_mult=2), r"hidden_mult 2, the recipe small says 4"),
    "other vectors": (_tlm(vec_dim=128), r"vec_dim 128, an AlphaEarth vector has 64"),
    "an unknown setting of TLM": (_tlm(gate=1), r"unknown field `gate`"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_is_refused_by_name_for(base: Path, adapter: Path, tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    folder = copied(adapter, tmp_path / "changed")
    change(folder)
    with pytest.raises(CheckpointError, match=message) as refused:
        open_weights(folder, recipe_on(base))
    assert str(folder) in str(refused.value)


def test_a_sigma_that_the_folder_contradicts_is_refused(base: Path, adapter: Path, own: Path) -> None:
    for checkpoint, recipe in ((adapter, recipe_on(base)), (own, recipe_on(None))):
        assert open_weights(checkpoint, recipe, sigma=2).config.fusar["sigma"] == 2
        with pytest.raises(CheckpointError, match="has sigma 2; leave --sigma out"):
            open_weights(checkpoint, recipe, sigma=1.5)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_film_is_not_run(base: Path, adapter: Path, tmp_path: Path, zipped: bool) -> None:
    folder = copied(adapter, tmp_path / "changed")
    bomb = {"film_mlp": files.random_film() | {"0.bias": _Bomb(tmp_path / "ran")}}
    torch.save(bomb, folder / "vec64_film.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"vec64_film.pt is not a file of tensors alone.*nothing of it was run"):
        open_weights(folder, recipe_on(base))
    assert not (tmp_path / "ran").exists()


def test_a_film_of_the_older_file_form_is_read(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = copied(adapter, tmp_path / "older")
    film = {k: v.half() for k, v in files.random_film().items()}
    torch.save({"film_mlp": film}, folder / "vec64_film.pt", _use_new_zipfile_serialization=False)
    state = open_weights(folder, recipe_on(base)).tlm_state()
    assert torch.equal(state["2.weight"], film["2.weight"].float())
    assert state["2.weight"].dtype == torch.float32


def _edit_base(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = next(folder.glob("model*.safetensors"))
    held = load_file(path)
    save_file(change(held) or held, path)


BASES: dict[str, tuple[Change, str]] = {
    "a shard that is missing": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        r"lacks model-00002-of-00002.safetensors, which model.safetensors.index.json lists",
    ),
    "a shard that lacks a tensor": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "model-00002-of-00002.safetensors"),
        r"does not hold \S+, which model.safetensors.index.json lists",
    ),
    "an index that is none": (lambda f: (f / "model.safetensors.index.json").write_text("[]") and None, r"no index"),
    "no weights": (lambda f: (f / "model.safetensors.index.json").unlink(), r"neither model.safetensors nor"),
    "fewer layers than the configuration": (
        lambda f: rewrite_json(f / "config.json", text_config=_text(f, num_hidden_layers=3)),
        r"lacks the tensor model.language_model.layers.2",
    ),
    "more layers than the configuration": (
        lambda f: rewrite_json(f / "config.json", text_config=_text(f, num_hidden_layers=1)),
        r"holds model.layers.1.\S+, which its config.json has no place for",
    ),
    "another width than the configuration": (
        lambda f: rewrite_json(f / "config.json", text_config=_text(f, intermediate_size=128)),
        r"is \[\d+, \d+\], config.json makes it",
    ),
    "another architecture": (
        lambda f: rewrite_json(f / "config.json", model_type="qwen2_vl"),
        r"is of model_type 'qwen2_vl'; allowed is 'qwen2_5_vl'",
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer.json"),
    "quantised weights": (
        lambda f: _edit_base(f, lambda h: {k: v.to(torch.int8) for k, v in h.items()}),
        r"is I8; allowed are F32, BF16, F16: give the checkpoint before it was quantised",
    ),
}


def _text(folder: Path, **values: Any) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((folder / "config.json").read_text())["text_config"]
    layers = values.get("num_hidden_layers", text["num_hidden_layers"])
    return text | values | {"layer_types": ["full_attention"] * layers}


@pytest.mark.parametrize("what", BASES)
def test_a_base_is_refused_for(tmp_path: Path, what: str) -> None:
    folder = published(tmp_path / "base", shards=2)
    change, message = BASES[what]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        open_weights("base", recipe_on(folder))


def test_a_checkpoint_of_another_recipe_is_refused(own: Path) -> None:
    import msgspec

    recipe = recipe_on(None)
    assert recipe.text is not None
    other = msgspec.structs.replace(recipe, text=msgspec.structs.replace(recipe.text, mrope_section=(4, 2, 2)))
    with pytest.raises(CheckpointError, match=r"text.mrope_section \[2, 3, 3\], the recipe small says \[4, 2, 2\]"):
        open_weights(own, other)
    with pytest.raises(CheckpointError, match="image_size 140, the recipe small says 168"):
        open_weights(own, msgspec.structs.replace(recipe, image_size=168))


def test_the_word_base_is_not_a_folder_of_that_name(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_on(base)
    copied(adapter, tmp_path / "base")
    for folder in ("./base", Path("base")):
        assert open_weights(folder, recipe).adapter == Path("base")
    with pytest.raises(CheckpointError, match=r"means the recipe's published base.*give \./base for the folder"):
        open_weights("base", recipe)
    shutil.rmtree("base")
    copied(base, tmp_path / "base")
    assert open_weights("base", recipe_on("base")).adapter is None  # the published base itself


def test_what_is_no_checkpoint_is_refused_with_the_forms(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no folder.*hub:OWNER/REPO"):
        open_weights(tmp_path / "nowhere", recipe_on(base))
    with pytest.raises(CheckpointError, match=r"no manifest.json"):
        open_weights(tmp_path, recipe_on(base))
    with pytest.raises(CheckpointError, match=r"recipe small has no published `base`"):
        open_weights(adapter, recipe_on(None))
    with pytest.raises(CheckpointError, match=r"base is no folder: give"):
        open_weights("base", recipe_on(None))
    with pytest.raises(KeyError, match=r"nothing\.weight"):
        open_weights(adapter, recipe_on(base)).tensor("nothing.weight")


# The hub ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_hub_is_downloaded_alone(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(base if repository == "owner/base" else tmp_path)

    copied(adapter, tmp_path / "stage2" / "detection")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = open_weights("hub:kkcyy/FUSAR-GPT/stage2/detection", recipe_on("owner/base"))
    assert torch.equal(found.tensor(Q_PROJ), open_weights(adapter, recipe_on(base)).tensor(Q_PROJ))
    assert [repository for repository, _ in asked] == ["kkcyy/FUSAR-GPT", "owner/base"]
    assert {f"stage2/detection/{name}" for name in hub.ADAPTER_FILES} < set(asked[0][1])
    assert all(pattern.startswith("stage2/detection/") for pattern in asked[0][1])
    with pytest.raises(CheckpointError, match=r"has none of adapter_config.json.* in stage3"):
        open_weights("hub:kkcyy/FUSAR-GPT/stage3", recipe_on(base))


@pytest.mark.parametrize("text", ["hub:FUSAR-GPT", "hub:a/b/../c", "hub:", "hub:/a/b", "hub:a//b"])
def test_a_name_of_the_hub_has_one_form(base: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match="hub:OWNER/REPO/SUB/FOLDER"):
        open_weights(text, recipe_on(base))


def test_a_hub_that_cannot_be_reached_is_said_with_the_remedy(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"hub:kkcyy/FUSAR-GPT/stage1 .*cached.*give the local folder as the checkpoint"
    ):
        open_weights("hub:kkcyy/FUSAR-GPT/stage1", recipe_on(base))
    with pytest.raises(CheckpointError, match=r"Qwen/Qwen2.5-VL-7B-Instruct.*local folder as the recipe's `base`"):
        open_weights(adapter, recipe_on("Qwen/Qwen2.5-VL-7B-Instruct"))
