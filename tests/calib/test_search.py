"""Sensitivity and search: on fakes whose answer is known, and on a few layers of the real thing."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import tiny_graphs
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.calib.run import calibrate
from fusar_edge.calib.search.run import fewest_kept
from fusar_edge.calib.search.sensitivity import Trials, holds, sensitivities
from fusar_edge.errors import GateError, OutputExistsError
from fusar_edge.manifest import read_manifest
from fusar_edge.specs import GateSpec

GATE = GateSpec(logits_kl=1.0)
GOOD = {
    "vision_cosine": 1.0,
    "vision_norm_off": 0.0,
    "logits_cosine": 1.0,
    "logits_norm_off": 0.0,
    "token_agreement": 1.0,
}


class Sums:
    """Trials whose divergence is the sum of what the layers in INT8 cost."""

    def __init__(self, costs: list[float], base: float = 0.0) -> None:
        self.costs = {f"layer.{place}": cost for place, cost in enumerate(costs)}
        self.able, self.base, self.runs = list(self.costs), base, 0
        layers = [type("L", (), {"name": name}) for name in self.able]
        self.found = {"g": type("G", (), {"layers": layers})}

    def figures(self, int8: Collection[str]) -> dict[str, float]:
        self.runs += 1
        return GOOD | {"logits_kl": self.base + sum(self.costs[name] for name in int8)}


def quiet(*_: Any) -> None:
    pass


@given(st.lists(st.floats(0.001, 0.9), min_size=1, max_size=12))
def test_no_smaller_choice_of_layers_holds(costs: list[float]) -> None:
    trials: Any = Sums(costs)
    kept = fewest_kept(trials, sensitivities(trials, GATE, quiet), GATE, quiet)
    assert holds(trials.figures([name for name in trials.able if name not in kept]), GATE)
    cheapest = sorted(costs)
    most = max(n for n in range(len(costs) + 1) if sum(cheapest[:n]) <= 1.0)
    assert len(kept) <= len(costs) - most + (abs(sum(cheapest[: most + 1]) - 1) < 1e-9)


class TwoCauses(Sums):
    """One layer uses up the cosine's allowance, well within it; the divergence fails by the sum of two others."""

    def figures(self, int8: Collection[str]) -> dict[str, float]:
        cosine = 1 - 0.0045 * ("layer.0" in int8)
        return super().figures(int8) | {"vision_cosine": cosine}


def test_a_layer_that_gives_back_most_is_put_back_where_it_is_not_what_fails() -> None:
    trials: Any = TwoCauses([0.0, 0.75, 0.3])
    rows = sensitivities(trials, GATE, quiet)
    assert max(rows, key=lambda row: row.share_saved).layer == "layer.0"
    assert fewest_kept(trials, rows, GATE, quiet) == ["layer.1"]


def test_where_the_gate_holds_nothing_is_kept() -> None:
    trials: Any = Sums([0.1, 0.2])
    assert fewest_kept(trials, sensitivities(trials, GATE, quiet), GATE, quiet) == []


def test_where_no_choice_holds_it_says_so() -> None:
    trials: Any = Sums([0.1, 0.2], base=2.0)
    with pytest.raises(GateError, match=r"no choice of layers .* with every layer in FP32, logits_kl 2"):
        fewest_kept(trials, sensitivities(trials, GATE, quiet), GATE, quiet)


def test_a_layer_is_measured_alone_and_left_out() -> None:
    trials: Any = Sums([0.1, 0.5])
    rows = sensitivities(trials, GATE, quiet)
    assert [row.alone["logits_kl"] for row in rows] == pytest.approx([0.1, 0.5])
    assert [row.without["logits_kl"] for row in rows] == pytest.approx([0.5, 0.1])
    assert rows[1].share_saved > rows[0].share_saved > 0
    assert rows[1].share_alone == pytest.approx(0.5 / 6)  # one of six allowances


RECIPE = (
    tiny_graphs.RECIPE.replace(
        '"vision.patch_embed" = "8-bit pixels"',
        """"vision.patch_embed" = "8-bit pixels"
"vision.blocks.[1-5].*" = "not asked here"
"vision.merger.*" = "not asked here"
"tlm.*" = "not asked here"
"decoder.l[am]*[!0].[sm]*" = "not asked here"
"decoder.lm_head" = "not asked here"
""",
    )
    .replace("logits_kl = 0.05", "logits_kl = 1e-5")
    .replace("token_agreement = 0.8", "token_agreement = 0.0")
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "few.toml"
    path.write_text(RECIPE)
    return str(path)


def run(recipe: str, out: Path) -> Any:
    return calibrate(recipe, tiny_graphs.fp32_folder(), [tiny_graphs.tiles()], out, search=True)


@pytest.fixture(scope="module")
def searched(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "int8"
    run(recipe, out)
    return out


def test_a_search_names_each_layer_not_in_int8_and_why(searched: Path) -> None:
    manifest = read_manifest(searched)
    found = json.loads((searched / "sensitivity.json").read_text())
    kept = {k: v for graph in manifest.figures["graphs"].values() for k, v in graph["kept"].items()}
    assert found["kept_by_search"].items() <= kept.items()
    assert found["chosen"]["logits_kl"] <= 1e-5 < found["all_in_int8"]["logits_kl"]
    assert len(found["layers"]) == 12
    assert 1 <= len(found["kept_by_search"]) < 12
    assert all("the gate fails: logits_kl" in why for why in found["kept_by_search"].values())
    page = (searched / "sensitivity.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org/", "")
    for name, why in found["kept_by_search"].items():
        assert name in page
        assert why.split(";")[0].replace("<=", "&lt;=") in page
    assert not list(searched.parent.glob("*.search"))


def test_a_search_that_was_killed_goes_on_and_pays_for_nothing_twice(
    recipe: str, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, runs = Trials._run, [0]

    def killed_at(limit: int) -> None:
        def run_one(self: Trials, int8: set[str]) -> dict[str, float]:
            if runs[0] == limit:
                raise KeyboardInterrupt
            runs[0] += 1
            return honest(self, int8)

        monkeypatch.setattr(Trials, "_run", run_one)

    killed_at(9)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "int8")
    state = tmp_path / "int8.search" / "trials.jsonl"
    assert len(state.read_text().splitlines()) == 1 + 9
    state.write_text(state.read_text() + '{"key": "cut o')  # as a kill in the middle of a line leaves it
    killed_at(10_000)
    run(recipe, tmp_path / "int8")
    for name in ("sensitivity.json", "decoder.onnx", "vision.onnx"):
        assert (tmp_path / "int8" / name).read_bytes() == (searched / name).read_bytes()
    whole = runs[0]
    assert whole < 2 * 12 + 1 + 16


def test_an_unfinished_search_of_other_arguments_is_not_gone_on_with(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "int8.search"
    folder.mkdir()
    (folder / "trials.jsonl").write_text(json.dumps({"identity": "another"}) + "\n")
    with pytest.raises(OutputExistsError, match=r"int8\.search holds an unfinished search with another recipe"):
        run(recipe, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
