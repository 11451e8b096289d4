"""Outputs appear whole or not at all; a changed byte is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusar_edge.errors import BundleError, InputError, OutputExistsError
from fusar_edge.manifest import (
    Manifest,
    folder_hashes,
    output_file,
    output_folder,
    read_manifest,
    verify_files,
    write_manifest,
)


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), output_folder(tmp_path / "out") as work:
        (work / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), output_file(tmp_path / "out.json") as work:
        work.write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out") as work:
        (work / "a").write_text("old")
    with pytest.raises(RuntimeError), output_folder(tmp_path / "out", force=True):
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_an_output_that_exists_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"), output_folder(tmp_path / "out"):
        pytest.fail("work was begun")
    with output_folder(tmp_path / "out", force=True) as work:
        (work / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "new"


def test_a_changed_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"1234")
    manifest = Manifest(stage="build", files=folder_hashes(tmp_path))
    write_manifest(tmp_path, manifest)
    verify_files(tmp_path, read_manifest(tmp_path))
    (tmp_path / "a.bin").write_bytes(b"1235")
    with pytest.raises(BundleError, match=r"a\.bin was changed"):
        verify_files(tmp_path, manifest, BundleError)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(InputError, match=r"a\.bin is missing"):
        verify_files(tmp_path, manifest)


@pytest.mark.parametrize("text", ["", "{", '{"stage": "build", "colour": 1}', "[]"])
def test_a_broken_manifest_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_field_that_changed_is_found_by_the_seal_and_a_folder_without_one_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(stage="build", figures={"accuracy": 0.5}, settings={"size": 252}))
    path = tmp_path / "manifest.json"
    assert read_manifest(tmp_path).figures == {"accuracy": 0.5}
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(InputError, match=r"manifest\.json was changed"):
        read_manifest(tmp_path)
    path.write_text(re.sub('"seal": "[0-9a-f]*"', '"seal": ""', path.read_text()))
    assert read_manifest(tmp_path).figures == {"accuracy": 0.9}
