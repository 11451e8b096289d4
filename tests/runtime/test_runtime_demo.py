from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import write_fake_bundle

from fusar_edge.errors import BundleError, OutputExistsError
from fusar_edge.runtime.demo import demo


def test_the_demo_makes_three_files_and_says_that_the_scene_is_simulated(tmp_path: Path) -> None:
    short = dict.fromkeys(("caption", "count", "grid", "detect"), 5)
    bundle = write_fake_bundle(tmp_path / "b", tile_px=504, overlap_px=64, max_new_tokens=short).folder
    out, lines = tmp_path / "demo", []
    summary = demo(out, bundle=bundle, threads=1, show=lines.append)
    assert sorted(p.name for p in out.iterdir()) == ["overlay.png", "result.geojson", "scene.tif"]
    assert "Simulated" in lines[0]
    assert "Nothing in it was measured" in lines[0]
    assert sum(line.startswith("[bold]tile") for line in lines) == 4
    assert summary["simulated"] is True
    assert summary["tiles"] == 4
    assert all(Path(summary[key]).is_file() for key in ("scene", "out", "overlay"))
    collection = json.loads((out / "result.geojson").read_text())
    assert collection["simulated"] is True
    assert all(feature["properties"]["simulated"] for feature in collection["features"])
    with pytest.raises(OutputExistsError, match="demo exists"):
        demo(out, bundle=bundle)


def test_without_a_bundle_the_demo_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        demo(tmp_path / "demo", bundle=tmp_path / "absent", show=lambda text: None)
    assert not list(tmp_path.iterdir())
