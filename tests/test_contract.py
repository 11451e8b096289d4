"""What the package promises as a whole: import budget, layers, wheel contents, exit codes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fusar_edge
from fusar_edge import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fusar_edge"
DEVICE = ("anchors", "sar", "runtime", "data", "service")
WORKSHOP = ("model", "train", "export", "calib", "engines", "eval")
HEAVY = (
    *("torch", "transformers", "onnx", "onnxruntime", "tensorrt", "rasterio", "zarr", "pyproj", "PIL", "rich.table"),
    *("fastapi", "scipy"),
)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusar_edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = f"import sys, fusar_edge.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def imported(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", DEVICE)
def test_the_device_side_never_imports_the_workshop(package: str) -> None:
    workshop = (f"fusar_edge.{name}" for name in WORKSHOP)
    forbidden = (*workshop, "torch", "transformers", "onnx.", "peft", "optimum")
    for path in (PACKAGE / package).rglob("*.py"):
        wrong = {m for m in imported(path) if m.startswith(forbidden) or m == "onnx"}
        assert not wrong, f"{path.name} imports {wrong}"


def test_every_error_of_the_tree_is_drawn_in_its_docstring() -> None:
    classes = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.EdgeError)]
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)
    assert {c.exit_code for c in classes if issubclass(c, errors.InputError)} == {2}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    builders = pytest.importorskip("hatchling.builders.wheel")
    out = tmp_path_factory.mktemp("wheel")
    (wheel,) = builders.WheelBuilder(str(ROOT)).build(directory=str(out), versions=["standard"])
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_carries_code_recipes_and_the_default_bundle(wheel_names: list[str]) -> None:
    for name in (
        "fusar_edge/cli.py",
        "fusar_edge/_recipes/export/fusar-tiny.toml",
        "fusar_edge/_recipes/export/fusar-tiny/tokenizer.json",
        *(f"fusar_edge/_recipes/export/accelerate/{name}.yaml" for name in ("ddp", "fsdp", "zero2")),
        "fusar_edge/_recipes/calib/w8a8-percentile.toml",
        "fusar_edge/_recipes/engines/cpu.toml",
        "fusar_edge/_bundles/default/manifest.json",
        "fusar_edge/_bundles/default/vision.onnx",
        "fusar_edge/_bundles/default/decoder.onnx",
        "fusar_edge/service/page/index.html",
        "fusar_edge/service/page/vendor/maplibre-gl.mjs",
        "fusar_edge/_bundles/default/decoder.plain.onnx",
    ):
        assert name in wheel_names


def test_the_wheel_carries_nothing_else(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"fusar_edge", f"fusar_edge-{fusar_edge.__version__}.dist-info"}
    assert not [name for name in wheel_names if "/out/" in name or "__pycache__" in name or name.endswith(".pyc")]


def test_help_of_every_verb_shows_an_example_or_says_what_it_does() -> None:
    verbs = ("demo", "interpret", "verify", "eval", "simulate", "train", "export", "calibrate", "build", "plan")
    for verb in (*verbs, "serve", "token create", "downlink", "bench", "bundle adapters use", "bundle adapters add"):
        shown = run(*verb.split(), "--help")
        assert shown.returncode == 0
        assert "Example: fusar-edge" in shown.stdout, verb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpret", "nowhere", "scene.tif", "--out", "r.geojson"], "nowhere is not a bundle"),
        (["interpret", "default", "none.tif", "--out", "r.geojson"], "none.tif"),
        (["build", "toaster", "--onnx", "x", "--out", "b"], "no recipe 'toaster'"),
        (["data", "convert", "ssdd", "nowhere", "--out", "d"], "nowhere is not a folder"),
        (["eval", "default", "--data", "none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input_ends_with_exit_code_2_one_line_and_no_output(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sim").mkdir()
    done = run("simulate", "--out", "sim", "--scenes", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--force" in done.stderr


def test_a_verb_ends_with_one_json_line(tmp_path: Path) -> None:
    done = run("simulate", "--out", "sim", "--scenes", "1", "--size", "128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["simulated"] is True
