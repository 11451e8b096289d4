"""A LoRA beside the weights says what it says merged into them; PEFT merges, ours must agree."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import adapter_files as files
import numpy as np
import onnx
import pytest
import torch
from official_files import (
    TLM_CONFIG,
    adapter_on,
    copied,
    hugging_face,
    published,
    random_film,
    rewrite_json,
    rewrite_lora,
)
from onnx import numpy_helper
from peft import PeftModel

from fusar_edge.calib.audit import audit
from fusar_edge.calib.compare import cosine
from fusar_edge.calib.products.lint import ADAPTER, lint
from fusar_edge.calib.qdq import linears
from fusar_edge.errors import BundleError, CheckpointError, InputError, OutputExistsError
from fusar_edge.export import adapters
from fusar_edge.export.adding import add_adapter
from fusar_edge.export.parity import rollout, run_from_file, sample
from fusar_edge.export.run import export_model
from fusar_edge.manifest import read_manifest, sha256_file, verify_files
from fusar_edge.model.adapted import LINEARS, adapt_model, branch_of
from fusar_edge.model.checkpoint import model_from
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.adapters import (
    changing,
    commit,
    data_name,
    read_record,
    read_tensors,
    remove_adapter,
    use_adapter,
)
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import DECODER, VISION, Bundle, open_bundle
from fusar_edge.specs import ModelRecipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def opened(checkpoint: Path) -> Any:
    return open_weights(checkpoint, load_recipe("export", str(files.recipe_file()), ModelRecipe)[0])


def model_of(checkpoint: Path) -> FusarForConditionalGeneration:
    return model_from(opened(checkpoint))


def logits_of(bundle: Bundle, visual: Any = None) -> list[Any]:
    """Of a prompt with an image and eight forced tokens, through the runtime."""
    given = sample(model_of(files.first()), 1)
    backend = open_backend(bundle, threads=1)
    if visual is None:
        visual = backend.vision(*given.vision.values())
    cache, found = backend.new_cache(256), []
    edges = [0, *range(given.prompt, given.input_ids.shape[1] + 1)]
    for start, stop in itertools.pairwise(edges):
        parts = given.input_ids[:, start:stop], visual, given.visual_index[:, start:stop]
        found.append(backend.step(cache, *parts, given.position_ids[:, :, start:stop]).logits.copy())
    return found


def same(found: list[Any], wanted: list[Any], least: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert cosine(a, b) > least
        assert a.argmax() == b.argmax()


def differ(found: list[Any], wanted: list[Any]) -> None:
    assert min(cosine(a, b) for a, b in zip(found, wanted, strict=True)) < 0.99


# FP32 ---------------------------------------------------------------------------------------------------------------


def test_the_branches_beside_the_base_are_what_peft_merges() -> None:
    for checkpoint, rank in ((files.first(), None), (files.second(), 20)):
        merged = PeftModel.from_pretrained(hugging_face(files.ROOT / "base"), checkpoint).merge_and_unload()
        branch = branch_of("ships", opened(checkpoint), rank)
        language = merged.model.language_model.layers
        for index, part in itertools.product(range(2), LINEARS):
            a, b = branch.factors(index, part)
            assert a.shape[0] == b.shape[1] == 20
            base = branch.weights.tensor(f"model.language_model.layers.{index}.{part}.weight")
            torch.testing.assert_close(base + b @ a, language[index].get_submodule(part).weight, rtol=0, atol=1e-6)


def test_a_model_with_its_adapter_apart_says_what_hugging_face_says_of_pefts_merge() -> None:
    merged = PeftModel.from_pretrained(hugging_face(files.ROOT / "base"), files.first()).merge_and_unload()
    model = model_of(files.first())
    adapt_model(model, branch_of("ships", opened(files.first())))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = merged.model.language_model(input_ids=ids).last_hidden_state
        found = model.model.language_model(input_ids=ids).last_hidden_state
        model.model.language_model.layers[1].mlp.up_proj.adapter_b.weight.zero_()
        without = model.model.language_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(without, wanted, rtol=1e-4, atol=1e-5)


def test_an_export_keeps_the_adapter_in_a_file_of_its_own() -> None:
    folder = files.fp32("first", "ships")
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.settings["adapters"] == {"active": "ships", "exported": "ships"}
    assert manifest.figures["unmerged_vs_merged"]["decoder.logits"]["cosine"] > 1 - 1e-6
    assert {"adapters/ships.data", "adapters/ships.json"} <= set(manifest.files)
    model = onnx.load(folder / DECODER, load_external_data=False)
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    record = read_record(folder, "ships")
    assert set(outside) == set(record.tensors)
    assert len(outside) == 2 * 2 * len(LINEARS)
    assert {entry["location"] for entry in outside.values()} == {data_name("ships")}
    assert (record.rank, record.branch_rank, record.stage) == (20, 20, "official")
    assert record.sources["adapter/adapter_model.safetensors"] == sha256_file(
        files.first() / "adapter_model.safetensors"
    )
    names = {node.name for node in model.graph.node}
    for part in LINEARS:
        stem = f"decoder.layers.1.{part}"
        assert {stem, f"{stem}.adapter_a", f"{stem}.adapter_b"} <= names


def test_what_is_zero_in_an_adapter_is_not_shared_in_the_graph() -> None:
    """The exporter stores equal constants once: `second` leaves four linears of seven alone."""
    folder = files.fp32("second", "ships", rank=20)
    record = read_record(folder, "ships")
    assert len(record.tensors) == 28
    assert (record.rank, record.branch_rank, record.targets) == (4, 20, ("q_proj", "v_proj", "down_proj"))
    found = read_tensors(folder, "ships")
    assert not found["decoder.layers.0.mlp.up_proj.adapter_a.weight"].any()
    assert found["decoder.layers.0.self_attn.q_proj.adapter_a.weight"][:, :4].any()
    assert not found["decoder.layers.0.self_attn.q_proj.adapter_a.weight"][:, 4:].any()


@pytest.mark.parametrize("checkpoint", ["first", "second"])
def test_unmerged_graphs_say_what_merged_ones_say_after_add_and_use(checkpoint: str, tmp_path: Path) -> None:
    bundle = files.bundle(files.fp32("first", "ships"), tmp_path / "bundle")
    before = logits_of(open_bundle(bundle))
    if checkpoint == "second":
        add_adapter(bundle, "planes", files.second())
        same(logits_of(open_bundle(bundle)), before, 1 - 1e-9)  # added is not used
        use_adapter(bundle, "planes")
    merged = logits_of(open_bundle(files.built(files.fp32(checkpoint, None))))
    same(logits_of(open_bundle(bundle)), merged, 1 - 1e-6)
    if checkpoint == "second":
        differ(before, merged)
        use_adapter(bundle, "ships")
        same(logits_of(open_bundle(bundle)), before, 1 - 1e-9)


def test_other_readers_of_the_file_see_the_adapter_it_was_exported_with(tmp_path: Path) -> None:
    """decoder.onnx is whole by itself: TensorRT, Netron and `calibrate` read it as a file."""
    given = sample(model_of(files.first()), 1)
    row = (2, 2, 1, 2, 16)
    visual = run_from_file(files.fp32("first", None) / VISION)(given.vision)["visual_tokens"]
    rolls = [
        rollout(run_from_file(files.fp32("first", name) / DECODER), visual, given, row, reuse=True)
        for name in ("ships", None)
    ]
    same(*[[step["logits"] for step in roll] for roll in rolls], least=1 - 1e-6)


# INT8 and SmoothQuant ------------------------------------------------------------------------------------------------


def test_a_branch_never_becomes_int8() -> None:
    found = {layer.name for layer in linears(onnx.load(files.fp32("first", "ships") / DECODER))}
    assert found == {layer.name for layer in linears(onnx.load(files.fp32("first", None) / DECODER))}
    int8 = onnx.load(files.int8("first", "ships") / DECODER)
    branches = {f.name: f for f in lint(int8) if ".adapter_" in f.name}
    assert len(branches) == 28
    assert {(f.int8, f.reason) for f in branches.values()} == {(False, ADAPTER)}
    floats = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer if ".adapter_" in t.name}
    for name, value in read_tensors(files.fp32("first", "ships"), "ships").items():
        np.testing.assert_array_equal(floats[name], value)
    assert read_manifest(files.int8("first", "ships")).figures["graphs"][DECODER]["int8"] == 15


@pytest.mark.parametrize("smooth", [False, True])
def test_int8_unmerged_is_as_near_to_int8_merged_as_int8_is_to_float(smooth: bool) -> None:
    unmerged, merged = (open_bundle(files.built(files.int8("first", name, smooth))) for name in ("ships", None))
    float_logits = logits_of(open_bundle(files.built(files.fp32("first", None))))
    given = sample(model_of(files.first()), 1)
    visual = [open_backend(b, threads=1).vision(*given.vision.values()) for b in (unmerged, merged)]
    assert cosine(*visual) > 0.9999
    both = logits_of(unmerged), logits_of(merged)
    for a, b, reference in zip(*both, float_logits, strict=True):
        assert cosine(a, b) > 0.995
        assert cosine(a, reference) > cosine(b, reference) - 0.003


def test_int8_with_an_adapter_is_what_its_manifest_says() -> None:
    """The gate's audit writes the graph again from FP32 and compares to the bit."""
    int8, fp32 = files.int8("first", "ships", True), files.fp32("first", "ships", True)
    assert audit(int8 / DECODER, fp32 / DECODER, read_manifest(int8).figures["graphs"][DECODER]) == []
    verify_files(int8, read_manifest(int8))
    assert "adapters/folds.npz" in read_manifest(int8).files


@pytest.mark.parametrize("smooth", [False, True])
def test_an_added_adapter_is_to_the_bit_what_exporting_it_makes(smooth: bool, tmp_path: Path) -> None:
    """Also beside weights that SmoothQuant has folded: the same factors are in it."""
    bundle = files.bundle(files.int8("first", "ships", smooth), tmp_path / "bundle")
    add_adapter(bundle, "again", files.first())
    assert (bundle / data_name("again")).read_bytes() == (bundle / data_name("ships")).read_bytes()
    folded = read_tensors(bundle, "ships")
    plain = read_tensors(files.fp32("first", "ships"), "ships")
    changed = {name for name in folded if not np.array_equal(folded[name], plain[name])}
    reads = {f"decoder.layers.{i}.{part}.adapter_a.weight" for i in (0, 1) for part in LINEARS}
    makes = {
        f"decoder.layers.{i}.{part}.adapter_b.weight" for i in (0, 1) for part in ("self_attn.v_proj", "mlp.up_proj")
    }
    folds = adapters.read_folds(bundle)
    assert changed <= reads | makes
    assert bool(changed) == bool(folds) == smooth
    assert not smooth or {key.rpartition(".")[2] for key in folds} == {"input", "output"}


def test_an_added_adapter_beside_folded_weights_says_what_its_merge_says(tmp_path: Path) -> None:
    bundle = files.bundle(files.fp32("first", "ships", True), tmp_path / "bundle")
    merged = logits_of(open_bundle(files.built(files.fp32("second", None))))
    add_adapter(bundle, "planes", files.second())
    same(logits_of(use_adapter(bundle, "planes")), merged, 1 - 1e-6)
    with changing(bundle) as (folder, held, _):  # without the factors it would be another
        held.files.pop("adapters/folds.npz")
        commit(folder, held)
    add_adapter(bundle, "unfolded", files.second())
    wrong = logits_of(use_adapter(bundle, "unfolded"))
    assert min(cosine(a, b) for a, b in zip(wrong, merged, strict=True)) < 0.999


def test_an_added_adapter_answers_in_int8_on_ranges_of_another(tmp_path: Path) -> None:
    """Its own ranges give 0.99; these adapters are far apart (0.5), as no two of one base are."""
    bundle = files.bundle(files.int8("first", "ships", True), tmp_path / "bundle")
    before = logits_of(open_bundle(bundle))
    add_adapter(bundle, "planes", files.second())
    merged = logits_of(open_bundle(files.built(files.fp32("second", None))))
    assert min(cosine(a, b) for a, b in zip(logits_of(use_adapter(bundle, "planes")), merged, strict=True)) > 0.95
    assert max(cosine(a, b) for a, b in zip(before, merged, strict=True)) < 0.7


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return files.bundle(files.fp32("first", "ships"), tmp_path / "bundle")


def refused(bundle: Path, checkpoint: Path, error: type[Exception], says: str) -> None:
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    with pytest.raises(error, match=says):
        add_adapter(bundle, "other", checkpoint)
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


def test_a_larger_rank_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    wide = files.adapter(tmp_path / "wide", r=24, lora_alpha=24)
    refused(bundle, wide, InputError, r"adapter other: its LoRA of model\.language_model\.layers\.0\..* has rank 24")


def test_an_adapter_of_another_width_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    other = copied(files.second(), tmp_path / "other")
    cut = lambda held: {k: v[:, :48] if k.endswith("q_proj.lora_A.weight") else v for k, v in held.items()}  # noqa: E731
    rewrite_lora(other, lambda held: {k: v.contiguous() for k, v in cut(held).items()})
    refused(bundle, other, CheckpointError, r"q_proj\.lora_A\.weight makes a weight \[64, 48\]")


def test_another_tlm_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    other = copied(files.second(), tmp_path / "other")
    torch.save({"film_mlp": {k: v * 1.01 for k, v in random_film().items()}}, other / "vec64_film.pt")
    refused(bundle, other, CheckpointError, r"other has another TLM \(vec64_film\.pt\) than")


def test_another_vision_lora_is_refused_by_name_and_the_same_one_is_taken(bundle: Path, tmp_path: Path) -> None:
    tower = files.adapter(tmp_path / "tower", r=4, lora_alpha=16, target_modules=["q_proj", "qkv"])
    refused(bundle, tower, CheckpointError, "another LoRA of the vision tower")
    export_model(str(files.recipe_file()), tower, tmp_path / "fp32", adapter="tower")
    own = files.built(tmp_path / "fp32")
    rewrite_lora(tower, lambda held: {k: v if "visual" in k else 2 * v for k, v in held.items()})
    add_adapter(own, "twice", tower)
    merged = tmp_path / "merged"
    export_model(str(files.recipe_file()), tower, merged)
    given = sample(model_of(tower), 1)
    runs = [run_from_file(folder / VISION)(given.vision)["visual_tokens"] for folder in (own, merged)]
    np.testing.assert_allclose(*runs, rtol=0, atol=1e-6)
    rewrite_lora(tower, lambda held: {k: 2 * v if "visual" in k else v for k, v in held.items()})
    with pytest.raises(CheckpointError, match="another LoRA of the vision tower"):
        add_adapter(own, "other", tower)


def test_another_base_is_refused_by_name(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.ROOT / "base" / "model.safetensors"
    held = path.read_bytes()
    try:
        path.write_bytes(held[:-4] + b"\x00\x00\x00\x00")
        refused(bundle, files.second(), CheckpointError, r"model\.safetensors of its base is not that of")
    finally:
        path.write_bytes(held)


def test_a_base_that_lies_elsewhere_is_given_and_compared(bundle: Path, tmp_path: Path) -> None:
    base = files.ROOT / "base"
    elsewhere = copied(base, tmp_path / "elsewhere")
    base.rename(files.ROOT / "away")
    try:
        refused(bundle, files.second(), CheckpointError, r"is no folder: .*; here: --base FOLDER")
        with pytest.raises(CheckpointError, match="--base nowhere is no folder"):
            add_adapter(bundle, "other", files.second(), base="nowhere")
        add_adapter(bundle, "given", files.second(), base=elsewhere)
        held = (elsewhere / "model.safetensors").read_bytes()
        (elsewhere / "model.safetensors").write_bytes(held[:-4] + b"\x00\x00\x00\x00")
        with pytest.raises(CheckpointError, match=r"model\.safetensors of its base is not that of"):
            add_adapter(bundle, "other", files.second(), base=elsewhere)
    finally:
        (files.ROOT / "away").rename(base)
    add_adapter(bundle, "found", files.second())
    assert (bundle / data_name("given")).read_bytes() == (bundle / data_name("found")).read_bytes()
    assert read_record(bundle, "given").recipe == read_record(bundle, "ships").recipe


def test_another_tokenizer_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    other = copied(files.second(), tmp_path / "other")
    (other / "tokenizer.json").write_text(files.TOKENIZER.read_text() + " ")
    refused(bundle, other, CheckpointError, r"tokenizer\.json is not the tokenizer of")


def test_other_tlm_settings_a_name_in_use_and_a_wrong_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = copied(files.second(), tmp_path / "other")
    rewrite_json(other / "tlm_config.json", **{**TLM_CONFIG, "sigma": 3.0})
    refused(bundle, other, CheckpointError, "sigma 3")
    with pytest.raises(OutputExistsError, match="has an adapter ships already"):
        add_adapter(bundle, "ships", files.second())
    with pytest.raises(InputError, match="no name of an adapter"):
        add_adapter(bundle, "../ships", files.second())


def test_a_lora_of_the_head_has_no_branch(tmp_path: Path) -> None:
    base = published(tmp_path / "base", tied=False, vocabulary=files.TOKENIZER)
    head = adapter_on(base, tmp_path / "head", target_modules=["q_proj", "lm_head"])
    recipe = tmp_path / "untied.toml"
    recipe.write_text(files.recipe_file().read_text().replace(str(files.ROOT / "base"), str(base)))
    with pytest.raises(CheckpointError, match=r"changes lm_head\.weight too, beside which the graph has no branch"):
        export_model(str(recipe), head, tmp_path / "out", adapter="head")
    with pytest.raises(CheckpointError, match="no LoRA that is apart from its base"):
        export_model(str(files.recipe_file()), "base", tmp_path / "out", adapter="none")
    with pytest.raises(InputError, match="--adapter-rank is of the branch"):
        export_model(str(files.recipe_file()), files.first(), tmp_path / "out", adapter_rank=8)
    with pytest.raises(InputError, match="has rank 20, the branches of the graph have rank 8"):
        export_model(str(files.recipe_file()), files.first(), tmp_path / "out", adapter="ships", adapter_rank=8)
    assert not (tmp_path / "out").exists()


def test_a_merged_bundle_has_no_place_for_an_adapter(tmp_path: Path) -> None:
    merged = files.bundle(files.fp32("first", None), tmp_path / "merged")
    for change in (lambda: add_adapter(merged, "ships", files.first()), lambda: use_adapter(merged, "ships")):
        with pytest.raises(BundleError, match="its LoRA is merged into the weights"):
            change()


def test_a_fused_decoder_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    spec = tmp_path / "fused.toml"
    spec.write_text(files.SPEC + 'decoder = "fused"\n')
    from fusar_edge.engines.build import build

    with pytest.raises(InputError, match='set decoder = "plain"'):
        build(str(spec), files.fp32("first", "ships"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_added_can_be_removed_and_what_is_needed_cannot(bundle: Path) -> None:
    add_adapter(bundle, "planes", files.second())
    use_adapter(bundle, "planes")
    with pytest.raises(InputError, match="planes is in use"):
        remove_adapter(bundle, "planes")
    with pytest.raises(InputError, match="exported and measured with"):
        remove_adapter(bundle, "ships")
    use_adapter(bundle, "ships")
    assert "adapters/planes.data" not in remove_adapter(bundle, "planes").manifest.files
    assert sorted(p.name for p in (bundle / "adapters").iterdir()) == ["ships.data", "ships.json"]
