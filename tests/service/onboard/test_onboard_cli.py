from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from downlink_scenes import SimulatedScene
from typer.testing import CliRunner, Result

from fusar_edge.cli import app
from fusar_edge.errors import InputError, OutputExistsError
from fusar_edge.service.journal import Journal


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> dict[str, Any]:
    """The line for a program."""
    assert result.exit_code == 0, result.exception
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.fixture
def data_dir(scenes: list[SimulatedScene], tmp_path: Path) -> Path:
    folder = tmp_path / "station"
    journal = Journal.open(folder / "journal.sqlite", ())
    for scene in scenes:
        scene.put(journal)
    journal.close()
    return folder


def test_a_packet_goes_down_is_read_and_its_receipt_ends_it(data_dir: Path, tmp_path: Path) -> None:
    packet, geojson = tmp_path / "packet.bin", tmp_path / "r.geojson"
    made = said(run("downlink", data_dir, "--budget", "1KiB", "--out", packet))
    assert packet.stat().st_size == made["bytes"] <= made["budget"] == 1024
    read = said(run("downlink-read", packet, "--out", geojson))
    collection = json.loads(geojson.read_bytes())
    assert len(collection["features"]) == read["records"] == made["records"] > 0
    assert read["simulated"] is True
    assert said(run("downlink-ack", data_dir, read["receipt"])) == {"packets": 1, "records": made["records"]}
    empty = said(run("downlink", data_dir, "--budget", "1KiB", "--out", tmp_path / "none.bin", "--resend-after", "0"))
    assert (empty["out"], empty["records"]) == (None, 0)
    assert not (tmp_path / "none.bin").exists()


def test_an_output_that_exists_takes_nothing_from_the_queue(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "packet.bin"
    out.write_text("another")
    assert isinstance(run("downlink", data_dir, "--out", out).exception, OutputExistsError)
    assert said(run("downlink", data_dir, "--out", out, "--force"))["sequence"] == 1


def test_a_packet_that_cannot_be_written_leaves_its_records_waiting(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = run("downlink", data_dir, "--out", tmp_path / "file" / "packet.bin")
    assert isinstance(failed.exception, InputError)
    assert "its records wait again" in str(failed.exception)
    made = said(run("downlink", data_dir, "--out", tmp_path / "packet.bin"))
    assert (made["records"] > 30, made["left"]) == (True, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["downlink", "nowhere", "--out", "p.bin"], "nowhere has no journal.sqlite"),
        (["downlink", "DATA", "--out", "p.bin", "--budget", "lots"], "--budget lots"),
        (["downlink", "DATA", "--out", "p.bin", "--budget", "20"], "the smallest packet has"),
        (["downlink-read", "none.bin", "--out", "r.geojson"], "none.bin: cannot be read"),
        (["downlink-read", "DATA/journal.sqlite", "--out", "r.geojson"], "do not begin as a packet"),
        (["downlink-ack", "DATA", "7-00000000"], "no receipt was taken"),
    ],
)
def test_bad_input_is_refused_in_words_and_writes_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    refused = run(*(argument.replace("DATA", data_dir.name) for argument in arguments))
    assert isinstance(refused.exception, InputError)
    assert message in str(refused.exception)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", ["downlink", "downlink-read", "downlink-ack"])
def test_help_of_the_downlink_shows_an_example(verb: str) -> None:
    assert "Example: fusar-edge downlink" in run(verb, "--help").stdout
