"""`fusar-edge bench`: a whole run into a folder, its report, a diff of two, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from bench_parts import default_session
from simulated_runs import simulated_run

from fusar_edge.bench.conditions import Conditions
from fusar_edge.bench.hands import Told
from fusar_edge.bench.observations import ObservationWriter, read_observations
from fusar_edge.bench.peer import PeerAnswer
from fusar_edge.bench.report import html_from_result, html_from_run
from fusar_edge.bench.result import BenchResult, part_figures, read_result, write_result
from fusar_edge.bench.roofline import Roofline, limits_of, roofline
from fusar_edge.bench.run import Plan, bench
from fusar_edge.bench.samples import quantile_interval
from fusar_edge.bench.table import markdown_from_result
from fusar_edge.errors import InputError, OutputExistsError
from fusar_edge.manifest import read_manifest, verify_files


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchResult]:
    """One short real run."""
    default_session()
    out = tmp_path_factory.mktemp("bench") / "run"
    plan = Plan("default", tasks=("count",), scenarios=("single", "offline"), power="none", threads=1, quick=True)
    return out, bench(changed_plan(plan, seconds=0.7), out, command="fusar-edge bench default --quick --out run")


def changed_plan(plan: Plan, **changes: object) -> Plan:
    return Plan(**{**vars(plan), **changes})  # type: ignore[arg-type]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusar_edge", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_leaves_raw_numbers_result_conditions_and_reports_all_sealed(ran: tuple[Path, BenchResult]) -> None:
    out, result = ran
    names = {path.name for path in out.iterdir()}
    assert names == {
        "observations.jsonl",
        "result.json",
        "conditions.json",
        "report.html",
        "report.md",
        "manifest.json",
    }
    manifest = read_manifest(out)
    assert manifest.stage == "bench"
    verify_files(out, manifest)
    assert read_result(out) == result
    assert {v.scenario for v in result.verdicts} == {"single", "offline"}
    assert "--quick: a look, not a measurement" in result.conditions.reasons
    assert not result.publishable


def test_every_figure_follows_from_the_raw_numbers(ran: tuple[Path, BenchResult]) -> None:
    out, result = ran
    observations = read_observations(out)
    assert part_figures(observations, ("single", "offline")) == result.parts
    queries = [o.ms for o in observations if o.part == "query" and o.scenario == "single" and not o.warm_up]
    assert result.verdicts[0].figure == quantile_interval(queries, 0.9)


def test_the_report_is_made_again_from_the_folder_alone(ran: tuple[Path, BenchResult]) -> None:
    out, _ = ran
    assert html_from_run(out) == (out / "report.html").read_text()


class Loads(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.svgs += tag == "svg"
        self.fetched += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]


def test_the_report_opens_offline(ran: tuple[Path, BenchResult]) -> None:
    text = (ran[0] / "report.html").read_text()
    page = Loads()
    page.feed(text)
    assert page.fetched == []
    assert page.scripts == 0
    assert page.svgs == 4  # latency, a waterfall for each scenario, roofline
    assert "url(http" not in text
    assert "@import" not in text
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_what_a_user_gives_is_escaped_in_the_report(ran: tuple[Path, BenchResult]) -> None:
    out, result = ran
    changed = msgspec.structs.replace(result, command="bench '<script>alert(1)</script>'")
    assert "<script>" not in html_from_result(changed, read_observations(out))


def test_the_table_says_first_whether_it_may_be_published(ran: tuple[Path, BenchResult]) -> None:
    text = markdown_from_result(ran[1])
    assert text.startswith("**Not publishable**: ")
    assert "| single | p90 latency of a tile |" in text
    assert "Not measured: power was not asked for" in text
    assert "simulated scene" in text


def test_a_planted_slowdown_is_found_and_the_command_fails(tmp_path: Path) -> None:
    for name, observations in (("a", simulated_run(1)), ("b", simulated_run(2, {"vision": 1.2}))):
        (tmp_path / name).mkdir()
        with ObservationWriter(tmp_path / name / "observations.jsonl") as writer:
            writer.add(observations)
    worse = run("diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert worse.returncode == 1
    assert "single: vision" in worse.stderr
    assert json.loads(worse.stdout.splitlines()[-1])["slower"] == ["single: vision"]
    allowed = run("diff", str(tmp_path / "a"), str(tmp_path / "b"), "--threshold", "1.5")
    assert allowed.returncode == 0
    assert json.loads(allowed.stdout.splitlines()[-1])["alarm"] is False


def test_the_first_word_after_bench_is_the_bundle(tmp_path: Path) -> None:
    refused = run("nowhere", "--out", str(tmp_path / "x"))
    assert refused.returncode == 2
    assert "nowhere is not a bundle" in refused.stderr
    shown = run("--help")
    assert "diff" in shown.stdout
    assert "report" in shown.stdout
    assert not (tmp_path / "x").exists()


def test_a_run_that_was_changed_is_neither_reported_nor_compared(ran: tuple[Path, BenchResult], tmp_path: Path) -> None:
    shutil.copytree(ran[0], tmp_path / "copy")
    path = tmp_path / "copy/result.json"
    path.write_text(path.read_text().replace('"quick": true', '"quick": false'))
    for refused in (
        run("report", str(tmp_path / "copy"), "--out", str(tmp_path / "r.html")),
        run("diff", str(ran[0]), str(tmp_path / "copy")),
    ):
        assert refused.returncode == 2
        assert "result.json was changed" in refused.stderr
    assert not (tmp_path / "r.html").exists()


def test_runs_that_did_different_work_are_not_compared(ran: tuple[Path, BenchResult], tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        shutil.copy(ran[0] / "observations.jsonl", tmp_path / name)
        conditions = msgspec.structs.replace(ran[1].conditions, threads=threads)
        write_result(tmp_path / name / "result.json", msgspec.structs.replace(ran[1], conditions=conditions))
    refused = run("diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert refused.returncode == 2
    assert "did not do the same: threads 1 and 2" in refused.stderr


def test_a_diff_that_cannot_judge_is_no_pass(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        with ObservationWriter(tmp_path / name / "observations.jsonl") as writer:
            writer.add(simulated_run(seed))
        (tmp_path / name / "conditions.json").write_bytes(msgspec.json.encode(Conditions(others_share=0.4)))
    refused = run("diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert refused.returncode == 2
    assert "cannot be judged, so this is no pass" in refused.stderr
    assert json.loads(refused.stdout.splitlines()[-1])["comparable"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": ("server",)}, "--scenario server: allowed are single, multi, offline, live"),
        ({"against": ("vllm",)}, "--against vllm: allowed are ours-grammar, hf-eager"),
        ({"power": "none.log"}, "--power none.log: allowed are auto"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        bench(changed_plan(Plan("default"), **changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_there_is_not_overwritten(ran: tuple[Path, BenchResult]) -> None:
    with pytest.raises(OutputExistsError):
        bench(Plan("default"), ran[0])


def test_a_damaged_result_is_named(tmp_path: Path, ran: tuple[Path, BenchResult]) -> None:
    shutil.copytree(ran[0], tmp_path / "copy")
    (tmp_path / "copy/result.json").write_text("{}")
    with pytest.raises(InputError, match=r"result\.json"):
        read_result(tmp_path / "copy")


def test_the_roofline_stands_on_the_device_s_limits_where_the_board_is_known(ran: tuple[Path, BenchResult]) -> None:
    out, result = ran
    orin = limits_of("NVIDIA Jetson Orin Nano Developer Kit")
    assert "engines/jetson-orin-nano-8gb.toml" in orin.source
    assert orin.bandwidth_gb_s == 102.0
    assert "engines/jetson-thor.toml" in limits_of("NVIDIA Jetson AGX Thor Developer Kit").source
    assert "engines/jetson-agx-orin" in limits_of("NVIDIA Jetson AGX Orin Developer Kit").source
    session = default_session()
    found = roofline(session.bundle, read_observations(out), "NVIDIA Jetson Orin NX Engineering Reference")
    points = {point.stage: point for point in found.points}
    assert set(points) == {"vision", "prefix", "one token"}
    assert points["one token"].bound == "memory"
    assert points["vision"].intensity > points["one token"].intensity
    assert all(point.least_ms < point.ms for point in points.values())  # no Orin ran it
    assert result.roofline.limits is not None
    assert "measured here" in result.roofline.limits.source


def test_a_token_of_a_fused_decoder_moves_the_bytes_of_its_blocks(ran: tuple[Path, BenchResult]) -> None:
    bundle, observations = default_session().bundle, read_observations(ran[0])
    plain = replace(bundle, settings=msgspec.structs.replace(bundle.settings, fused=None))
    points = {p.stage: p.gb for p in roofline(bundle, observations, "").points}
    before = {p.stage: p.gb for p in roofline(plain, observations, "").points}
    assert points["vision"] == before["vision"]
    assert 1 < points["one token"] / before["one token"] < 1.04  # a scale for 128 inputs, not for all of a channel


def test_a_model_that_no_recipe_names_has_no_roofline(ran: tuple[Path, BenchResult]) -> None:
    bundle = default_session().bundle
    renamed = type(bundle)(**{**vars(bundle), "settings": msgspec.structs.replace(bundle.settings, name="other")})
    found = roofline(renamed, [], "")
    assert found == Roofline(missing=found.missing)
    assert "'other'" in found.missing


def test_a_comparison_is_in_table_and_report(ran: tuple[Path, BenchResult]) -> None:
    from fusar_edge.bench.compare import _comparison  # made of what candidates told, without running any

    told = [
        Told(
            "ours",
            "int8",
            "tile",
            [(i, PeerAnswer(((1, 2),), ("a",), {"tile": 10.0 + i, "decode": 5.0}, 2)) for i in range(12)],
        ),
        Told(
            "hf-eager",
            "fp32",
            "tile",
            [(i, PeerAnswer(((1, 3),), ("a",), {"tile": 40.0 + i, "decode": 9.0}, 2)) for i in range(12)],
        ),
    ]
    out, result = ran
    changed = msgspec.structs.replace(result, comparison=_comparison(told, 3, 12, 1.0, 2))
    text = markdown_from_result(changed)
    assert re.search(r"\| hf-eager fp32 \| 45\.5 \| 3\.\d\d \|", text)
    assert "| 0.500 | 0.000 |" in text
    assert "Accuracy against speed" in html_from_result(changed, read_observations(out))
