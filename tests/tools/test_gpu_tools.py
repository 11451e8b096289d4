"""tools/gpu: what travels to a GPU machine arrives whole, and the session's parts run as far as a CPU allows."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.runtime.ort import open_ort

TOOLS = Path(__file__).parents[2] / "tools" / "gpu"

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")


def load(name: str) -> ModuleType:
    """A script of tools/gpu, which is no package."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(TOOLS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def unpack(carried: Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", TOOLS / "unpack.sh", carried, store], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 kB that do not compress, a program and a link."""
    folder = tmp_path / "load"
    (folder / "bin").mkdir(parents=True)
    (folder / "noise").write_bytes(np.random.default_rng(0).bytes(200_000))
    (folder / "bin" / "run").write_text("#!/bin/sh\necho here\n")
    (folder / "bin" / "run").chmod(0o755)
    (folder / "bin" / "also").symlink_to("run")
    return folder


@needs_zstd
def test_pieces_unpack_to_the_folder_they_were_made_of_in_any_order(folder: Path, tmp_path: Path) -> None:
    carried = load("pack").pack(folder, tmp_path / "pieces", piece_mib=0.06)
    store = tmp_path / "store"
    assert [path.name for path in carried] == ["load-00", "load-01", "load-02", "load-03"]
    for number in (2, 0, 3):
        assert unpack(carried[number], store).returncode == 3
    last = unpack(carried[1], store)
    assert (last.returncode, last.stderr) == (0, "")
    assert (store / "load" / "noise").read_bytes() == (folder / "noise").read_bytes()
    assert (store / "load" / "bin" / "also").readlink() == Path("run")
    assert subprocess.run([store / "load" / "bin" / "also"], capture_output=True, check=True).stdout == b"here\n"
    assert unpack(carried[0], store).stdout == "load: unpacked already\n"


@needs_zstd
def test_a_damaged_piece_is_named_and_a_whole_one_takes_its_place(folder: Path, tmp_path: Path) -> None:
    carried = load("pack").pack(folder, tmp_path / "pieces", piece_mib=0.12)
    store, piece = tmp_path / "store", carried[1] / "load.01"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert unpack(carried[0], store).stdout == "load: still missing: load.01\n"
    refused = unpack(carried[1], store)
    assert refused.returncode == 1
    assert f"{piece} is damaged" in refused.stderr
    assert not (store / "load").exists()
    piece.write_bytes(whole)
    assert unpack(carried[1], store).returncode == 0


@needs_zstd
def test_pieces_of_two_packings_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    pack = load("pack")
    store = tmp_path / "store"
    unpack(pack.pack(folder, tmp_path / "one", piece_mib=0.12)[0], store)
    (folder / "noise").write_bytes(b"else" * 50_000 + np.random.default_rng(1).bytes(200_000))
    mixed = unpack(pack.pack(folder, tmp_path / "two", piece_mib=0.12)[1], store)
    assert mixed.returncode == 2
    assert "another packing" in mixed.stderr


@needs_zstd
def test_the_same_files_give_the_same_pieces(folder: Path, tmp_path: Path) -> None:
    pack = load("pack")
    first = pack.pack(folder, tmp_path / "one", piece_mib=1)[0] / "load.sha256"
    os.utime(folder / "noise", (1, 1))
    again = pack.pack(folder, tmp_path / "two", piece_mib=1)[0] / "load.sha256"
    assert first.read_text() == again.read_text()


@needs_zstd
def test_a_machine_without_zstd_unpacks_with_the_one_that_travels_in_the_first_piece(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = load("pack").pack(folder, tmp_path / "pieces", piece_mib=1)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "basename", "cut", "cmp", "cp", "mv", "rm", "mkdir", "touch", "cat", "tar", "sha256sum"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    assert unpack(carried[0], tmp_path / "store").returncode == 0
    assert (tmp_path / "store" / "load" / "noise").read_bytes() == (folder / "noise").read_bytes()


@pytest.mark.parametrize("piece_mib", [0, -1, 65])
def test_a_piece_larger_than_a_transfer_is_refused(folder: Path, tmp_path: Path, piece_mib: float) -> None:
    pack = load("pack")
    with pytest.raises(pack.PackError, match="at most 64"):
        pack.pack(folder, tmp_path / "pieces", piece_mib=piece_mib)
    assert not (tmp_path / "pieces").exists()


def test_an_empty_folder_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert load("pack").main([str(tmp_path / "empty"), "--out", str(tmp_path / "pieces")]) == 2
    assert "empty is not a folder with something in it" in capsys.readouterr().err


def test_stub_libraries_satisfy_what_a_library_needs_at_load_time(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    gather = load("gather")
    real, stubs = tmp_path / "real", tmp_path / "stubs"
    real.mkdir()
    stubs.mkdir()
    (real / "map").write_text("libcudnn.so.8 { global: *; };")
    build(real / "libcudnn.so.8", "int cudnnCreate(void) { return 0; }", f"-Wl,--version-script={real / 'map'}")
    code = "int cudnnCreate(void); int ask(void) { return cudnnCreate(); }"
    build(tmp_path / "needs.so", code, str(real / "libcudnn.so.8"), f"-Wl,-rpath,{stubs}", "-Wl,--no-as-needed")
    gather.write_stubs(tmp_path / "needs.so", stubs)
    assert sorted(path.name for path in stubs.iterdir()) == sorted(gather.STUBBED)
    ask = "import ctypes, os, sys; print(ctypes.CDLL(sys.argv[1], os.RTLD_NOW).ask())"
    said = subprocess.run(
        [sys.executable, "-c", ask, tmp_path / "needs.so"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "15\n"


def build(library: Path, code: str, *flags: str) -> None:
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        f"-Wl,-soname,{library.name}",
        "-x",
        "c",
        "-",
        "-x",
        "none",
    ]
    subprocess.run([*command, *flags], input=code, text=True, check=True)


def test_the_digest_lent_to_an_old_python_is_hashlibs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"twelve bytes" * 300_000)
    with path.open("rb") as file:
        assert load("old_python")._file_digest(file, "sha256").digest() == hashlib.sha256(path.read_bytes()).digest()


def test_comparison_tells_direction_from_size_and_counts_equal_tokens() -> None:
    reference = {"visual_tokens": np.array([[1.0, 2.0]]), "decode": np.array([[0.0, 3.0], [1.0, 0.0]])}
    found = {"visual_tokens": np.array([[2.0, 4.0]]), "decode": np.array([[0.0, 3.0], [0.0, 1.0]])}
    figures = load("measure").compared(found, reference)
    assert figures["visual_tokens"] == pytest.approx({"cosine": 1.0, "norm_ratio": 2.0, "largest_difference": 2.0})
    assert figures["decode"] == pytest.approx(
        {"cosine": 0.9, "norm_ratio": 1.0, "largest_difference": 1.0, "same_token": 0.5}
    )


def test_a_forced_step_after_the_prompt_equals_the_prompt_with_that_token() -> None:
    measure, bundle = load("measure"), open_bundle()
    backend, case = open_ort(bundle, threads=1), measure.Case(bundle.settings)
    found = measure.outputs(backend, bundle.settings, case)
    case.question += case.answer[:3]
    longer = {"decode": case.prefill(backend, backend.new_cache(256), case.see(backend))}
    right, wrong = (measure.compared({"decode": found["decode"][step]}, longer)["decode"] for step in (2, 1))
    assert right["largest_difference"] < 0.01
    assert wrong["largest_difference"] > 0.1


def test_latencies_hold_what_was_observed_and_leave_room_in_the_cache() -> None:
    measure, bundle = load("measure"), open_bundle()
    found = measure.latencies(open_ort(bundle, threads=1), bundle.settings, measure.Case(bundle.settings), 0.01)
    assert {len(found[part]) >= 5 for part in ("vision", "prefill", "decode")} == {True}
    assert found["prefill_tokens"] == 81 + measure.BEFORE + measure.AFTER + measure.QUESTION
    figures = measure.summary([float(ms) for ms in range(101)])
    assert figures == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "mean": 50.0, "n": 101}


def test_a_failed_entry_is_recorded_and_a_later_process_adds_to_it(tmp_path: Path) -> None:
    record = load("record")

    def fails() -> dict[str, Any]:
        raise ValueError("no such thing")

    assert not record.Record("part", tmp_path).run("first", fails)
    assert record.Record("part", tmp_path).run("second", lambda: {"ms": 1.0})
    entries = json.loads((tmp_path / "part.json").read_text())["entries"]
    assert entries["first"]["error"] == "ValueError: no such thing"
    assert entries["second"]["ms"] == 1.0


def test_a_session_runs_its_device_part_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = load("session")
    words = ["--store", str(tmp_path), "--out", str(tmp_path / "out"), "--parts", "device", "--dry-run"]
    assert session.main(words) == 0, (tmp_path / "out" / "session.log").read_text()
    entries = json.loads((tmp_path / "out" / "device.json").read_text())["entries"]
    assert entries["copies"]["equal"]
    assert entries["cache_tiny"]["equal"]
    assert "device cache_tiny" in capsys.readouterr().out


def test_a_step_is_stopped_at_the_limit_and_no_later_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = load("session")
    monkeypatch.setattr(session, "command", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"])
    words = ["--store", str(tmp_path), "--out", str(tmp_path / "out"), "--parts", "graphs", "--models", "tiny", "3b"]
    assert session.main([*words, "--limit-s", "1.1"]) == 1
    steps = json.loads((tmp_path / "out" / "session.json").read_text())["steps"]
    assert [step["status"] for step in steps.values()] == ["stopped at the limit", "not started: no time left"]


def test_engines_run_in_the_python_that_was_carried_with_tensorrt(tmp_path: Path) -> None:
    session = load("session")
    python = tmp_path / "tensorrt" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    given = argparse.Namespace(store=tmp_path, out=tmp_path, dry_run=False)
    assert session.command("engines", "7b", given)[0] == str(python)
    assert session.command("graphs", "7b", given)[0] == sys.executable
    assert str(tmp_path / "session") in session.environment("graphs", given)["PYTHONPATH"]
    assert str(tmp_path / "session") not in session.environment("engines", given)["PYTHONPATH"]
    given.dry_run = True
    assert session.command("engines", "7b", given)[0] == sys.executable
    assert str(tmp_path / "session") in session.environment("engines", given)["PYTHONPATH"]


@pytest.mark.slow
def test_a_whole_session_runs_on_the_cpu(tmp_path: Path) -> None:
    session = load("session")
    assert session.main(["--store", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    engines = json.loads((tmp_path / "out" / "engines.json").read_text())["entries"]
    for entry in engines.values():
        assert entry["outputs"]["decode"]["cosine"] == pytest.approx(1)
        assert entry["device"] == {"allocations_in_decode": 0, "waits_per_step": 1.0}
    assert "tiny_eager" in json.loads((tmp_path / "out" / "huggingface.json").read_text())["entries"]
