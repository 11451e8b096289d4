"""An export that is killed goes on, and ends with the same bytes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_graphs
from test_lean_export import saved_checkpoint

from fusar_edge.errors import InputError, OutputExistsError
from fusar_edge.export.lean.data_file import DataFile
from fusar_edge.export.lean.unfinished import Line, unfinished
from fusar_edge.export.run import export_model
from fusar_edge.manifest import read_manifest, verify_files

SCRIPT = Path(__file__).with_name("killed_export.py")


def test_an_export_killed_at_three_random_points_ends_with_the_same_hashes(tmp_path: Path) -> None:
    checkpoint, recipe = saved_checkpoint(tmp_path), tmp_path / "calib.toml"
    recipe.write_text(tiny_graphs.RECIPE)
    data = tiny_graphs.tiles()
    export_model("fusar-tiny", checkpoint, tmp_path / "whole", int8=str(recipe), data=[data])
    journal = tmp_path / ".killed.exporting" / "journal.jsonl"
    done = []
    seed = random.randrange(1 << 30)
    for count in random.Random(seed).sample(range(20, 140), 3):  # a layer is some 20 writes
        run = [
            sys.executable,
            str(SCRIPT),
            str(checkpoint),
            str(recipe),
            str(data),
            str(tmp_path / "killed"),
            str(count),
        ]
        killed = subprocess.run(run, capture_output=True, timeout=300, check=False)
        assert killed.returncode == -9, (seed, count, killed.stderr.decode()[-2000:])
        assert not (tmp_path / "killed").exists()
        done.append(len(journal.read_bytes().splitlines()))
    assert done == sorted(done), f"layers that were finished are not done again (seed {seed})"
    assert done[-1] > 1
    export_model("fusar-tiny", checkpoint, tmp_path / "killed", int8=str(recipe), data=[data])
    a, b = (read_manifest(tmp_path / name) for name in ("whole", "killed"))
    assert a.files == b.files, f"seed {seed}"
    # Not all figures: a sum of a dot product may end in another bit in another process.
    assert a.figures["graphs"] == b.figures["graphs"], f"seed {seed}"
    assert not journal.parent.exists()


def test_the_remains_of_another_export_are_kept_unless_forced(tmp_path: Path) -> None:
    checkpoint, recipe = saved_checkpoint(tmp_path), tmp_path / "calib.toml"
    recipe.write_text(tiny_graphs.RECIPE)
    out = tmp_path / "out"
    with unfinished(out) as work:
        work.take_up({"recipe": "another"}, force=False)
    with pytest.raises(OutputExistsError, match=r"unfinished export with other .*recipe.* --force"):
        export_model("fusar-tiny", checkpoint, out, int8=str(recipe), data=[tiny_graphs.tiles()])
    with unfinished(out), pytest.raises(OutputExistsError, match="exported by another process"):
        export_model("fusar-tiny", checkpoint, out, int8=str(recipe), data=[tiny_graphs.tiles()])


def test_an_export_stopped_while_it_is_published_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, recipe = saved_checkpoint(tmp_path), tmp_path / "calib.toml"
    recipe.write_text(tiny_graphs.RECIPE)
    given = {"int8": str(recipe), "data": [tiny_graphs.tiles()]}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fusar_edge.export.lean.run.write_manifest", stop)
        export_model("fusar-tiny", checkpoint, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    export_model("fusar-tiny", checkpoint, tmp_path / "out", progress=told.append, **given)  # type: ignore[arg-type]
    assert "going on after 18 layers" in told
    verify_files(tmp_path / "out", read_manifest(tmp_path / "out"))


@pytest.mark.parametrize("loss", ["data", "values", "journal", "folder", "plan"])
def test_remains_that_are_not_whole_are_begun_anew(tmp_path: Path, loss: str) -> None:
    """A file that was cut or removed by others: never a graph with zeros in it."""
    plan, out = {"recipe": "one"}, tmp_path / "out"
    with unfinished(out) as work:
        assert not work.take_up(plan, force=False)
        data = DataFile(work.folder / "decoder.onnx.data", {})
        data.put("weight", np.arange(4096, dtype=np.float32))
        data.flush()
        data.close()
        work.finish(Line("layer", {"decoder.onnx": data.entries}, {}), {"a|b": np.ones(3)})
    root = tmp_path / ".out.exporting"
    if loss == "data":
        os.truncate(root / "folder" / "decoder.onnx.data", 100)
    elif loss == "values":
        (root / "values-1.npz").write_bytes(b"PK")
    elif loss == "journal":
        (root / "journal.jsonl").write_bytes((root / "journal.jsonl").read_bytes()[:-9])
    elif loss == "folder":
        shutil.rmtree(root / "folder")
    else:
        (root / "plan.json").write_bytes(b'{"recipe": "on')
    with unfinished(out) as work:
        if loss == "plan":
            with pytest.raises(OutputExistsError, match="with other settings"):
                work.take_up(plan, force=False)
        assert not work.take_up(plan, force=loss == "plan")
        assert work.lines == []
        assert work.folder.is_dir()
    with unfinished(out) as work:
        work.take_up(plan, force=False)
        work.finish(Line("layer"), {})
    with unfinished(out) as work:
        assert work.take_up(plan, force=False)


def test_an_output_that_came_to_be_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="exists"), unfinished(out) as work:
        work.take_up({}, force=False)
        work.finish(Line("layer"), {})
        out.mkdir()
        work.publish(out, force=False)
    assert (tmp_path / ".out.exporting" / "folder").is_dir()


def test_a_full_disk_is_told_and_what_is_done_stays(tmp_path: Path) -> None:
    said = r"No space left on device.: make room and give the same command again; 1 layers are done"
    with pytest.raises(InputError, match=said), unfinished(tmp_path / "out") as work:
        work.take_up({}, force=False)
        work.finish(Line("layer"), {})
        raise OSError(errno.ENOSPC, "No space left on device")
    with unfinished(tmp_path / "out") as work:
        assert work.take_up({}, force=False)
