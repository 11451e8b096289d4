"""`calibrate`, `build` and `verify` as commands: modes, arguments that do not go together, brackets in a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_graphs
from typer.testing import CliRunner, Result

from fusar_edge.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def last(result: Result) -> dict[str, object]:
    return json.loads(result.stdout.splitlines()[-1])


def test_two_precisions_that_agree_are_told_so() -> None:
    data = tiny_graphs.other_tiles()
    result = run("calibrate", "--compare", tiny_graphs.fp32_folder(), tiny_graphs.fp32_folder(), "--data", data)
    assert result.exit_code == 0
    assert last(result)["first"] is None


def test_products_that_are_not_in_int8_are_listed_with_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusar_edge.commands.workshop.find_spec", lambda name: None if "tensorrt" in name else True)
    result = run("calibrate", "--lint", tiny_graphs.int8_folder())
    assert result.exit_code == 0
    rows = last(result)["not_int8"]
    assert isinstance(rows, list)
    embedding = next(row for row in rows if row["name"] == "vision.patch_embed")
    assert embedding["reason"] == "8-bit pixels"
    assert embedding["macs"] == 324 * 192 * 14 * 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense", "--compare", "a", "b", "--search"], "calibrate --compare does not take --search, RECIPE"),
        (["--lint", "a", "--data", "b"], "calibrate --lint does not take --data"),
        (["r", "--images", "3"], "calibrate RECIPE does not take --images"),
        (["w8a8-percentile", "--onnx", "x"], "calibrate takes RECIPE, --onnx, --data and --out"),
        (["--compare", "a", "b"], "give --data MANIFEST"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(arguments: list[str], message: str) -> None:
    result = run("calibrate", *arguments)
    assert result.exit_code == 2 or message in str(result.exception)
    assert message in str(result.exception) + result.output


def test_a_waiver_may_hold_brackets(tmp_path: Path) -> None:
    reason = "see [/issue 3] and [b]"
    built = run("build", "cpu", "--onnx", tiny_graphs.int8_folder(), "--waive", reason, "--out", tmp_path / "bundle")
    assert built.exit_code == 0, built.output
    assert last(built)["waiver"] == reason
    checked = run("verify", tmp_path / "bundle")
    assert checked.exit_code == 0
    assert f"waived: {reason}" in checked.output.replace("\n", "")
