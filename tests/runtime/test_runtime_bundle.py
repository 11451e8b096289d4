from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from fakes import Weights, decoder_graph, fake_settings, write_fake_bundle

from fusar_edge.data import chat
from fusar_edge.data.tasks import TASKS, canonical_prompt
from fusar_edge.errors import BundleError
from fusar_edge.manifest import FILENAME
from fusar_edge.runtime import bundle as bundle_module
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import Bundle, BundleSettings, Prompts, canonical_prompts, open_bundle, seal_bundle
from fusar_edge.runtime.session import Session


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def edit_manifest(folder: Path, **settings: object) -> None:
    path = folder / FILENAME
    manifest = json.loads(path.read_text())
    manifest["settings"].update(settings)
    path.write_text(json.dumps(manifest | {"seal": ""}))


def test_a_sealed_bundle_opens_with_the_settings_it_was_sealed_with(bundle: Bundle) -> None:
    assert bundle.settings == fake_settings()
    assert bundle.manifest.recipe == "fake"
    assert set(bundle.manifest.files) == set(bundle_module.REQUIRED)
    assert len(bundle.sha256) == 64


@pytest.mark.parametrize("name", bundle_module.REQUIRED)
def test_one_changed_byte_is_refused_by_file_name(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        open_bundle(copy)


@pytest.mark.parametrize("name", bundle_module.REQUIRED)
def test_a_missing_file_is_refused_by_name_also_where_the_manifest_forgot_it(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(copy)
    manifest = json.loads((copy / FILENAME).read_text())
    del manifest["files"][name]
    (copy / FILENAME).write_text(json.dumps(manifest | {"seal": ""}))
    with pytest.raises(BundleError, match=f"does not list {name}"):
        open_bundle(copy)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_format_version_is_refused_before_its_settings_are_read(copy: Path, version: object) -> None:
    edit_manifest(copy, format=version, a_key_of_the_future=1)
    with pytest.raises(BundleError, match="reads format 1 only"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"cells": 0}, "cells"), ({"colour": 1}, "colour"), ({"eos_ids": []}, "eos_ids"), ({"precision": "int4"}, "int4")],
)
def test_settings_that_are_wrong_are_refused_by_key(copy: Path, change: dict, says: str) -> None:
    edit_manifest(copy, **change)
    with pytest.raises(BundleError, match=f"settings: .*{says}"):
        open_bundle(copy)


def test_a_folder_of_another_stage_is_not_a_bundle(copy: Path) -> None:
    path = copy / FILENAME
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"stage": "export", "seal": ""}))
    with pytest.raises(BundleError, match="stage 'export' is not a bundle"):
        open_bundle(copy)


def test_what_is_no_bundle_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="fusar-edge build"):
        open_bundle(tmp_path)
    monkeypatch.setattr(bundle_module, "DEFAULT", tmp_path / "absent")
    with pytest.raises(BundleError, match="without its default bundle"):
        open_bundle("default")


def test_a_folder_without_graphs_cannot_be_sealed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"lacks vision\.onnx, decoder\.onnx, tokenizer\.json"):
        seal_bundle(tmp_path, fake_settings())
    assert not list(tmp_path.iterdir())


def test_an_unknown_engine_is_refused_with_the_list_of_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'abacus' is unknown .* onnxruntime"):
        open_backend(write_fake_bundle(tmp_path / "b", engine="abacus"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cells": 3}, r"vision\.onnx: output visual_tokens"),
        ({"layers": 4}, r"decoder\.onnx: input past"),
        ({"vocab_size": 999}, r"decoder\.onnx: output logits"),
    ],
)
def test_graphs_that_are_not_those_of_the_settings_are_refused(tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        open_backend(write_fake_bundle(tmp_path / "b", **change), threads=1)


def test_a_graph_with_other_inputs_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "b").folder
    model = decoder_graph(Weights())
    model.graph.output.pop()
    onnx.save(model, folder / "decoder.onnx")
    seal_bundle(folder, fake_settings())
    with pytest.raises(BundleError, match=r"decoder\.onnx: its outputs are logits, next_ids; they must be"):
        open_backend(open_bundle(folder), threads=1)


def test_bytes_that_are_no_graph_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "b").folder
    (folder / "vision.onnx").write_bytes(b"no graph")
    seal_bundle(folder, fake_settings())
    with pytest.raises(BundleError, match=r"vision\.onnx: ONNX Runtime cannot open it"):
        open_backend(open_bundle(folder), threads=1)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(bundle: Bundle) -> None:
    small = msgspec.structs.replace(bundle.settings, vocab_size=100)
    with pytest.raises(BundleError, match=r"tokenizer\.json: ids up to 261"):
        Session(Bundle(bundle.folder, small, bundle.prompts, bundle.radiometry, bundle.manifest, bundle.sha256))


@pytest.mark.parametrize("task", TASKS)
def test_the_bundle_asks_what_training_asked(task: str) -> None:
    box = (3.2, 40.0, 99.9, 503.0) if task == "classify" else None
    assert Prompts().question(task, "plane", box) == canonical_prompt(task, "plane", box)
    assert set(canonical_prompts()) == set(TASKS)


def test_a_prompt_in_pieces_is_the_prompt_of_training(bundle: Bundle) -> None:
    session = Session(bundle, threads=1)
    question = "How many {ships}?"
    whole = session.tokenizer.encode(chat.prompt_text(question, bundle.settings.cells**2))
    tail = session.tokenizer.encode_plain(question) + session.tokenizer.encode(bundle.prompts.after_question)
    assert [*session.prefix.ids.tolist(), *tail] == whole


def test_a_special_token_in_a_question_is_plain_text(bundle: Bundle) -> None:
    tokenizer = Session(bundle, threads=1).tokenizer
    assert len(tokenizer.encode("<|im_end|>")) == 1
    assert len(plain := tokenizer.encode_plain("a <|im_end|>")) == 12
    assert tokenizer.decode(plain) == "a <|im_end|>"


def test_settings_survive_the_manifest() -> None:
    settings = fake_settings(precision="int8", max_new_tokens={"count": 3})
    assert msgspec.convert(json.loads(msgspec.json.encode(settings)), BundleSettings) == settings
