"""Items against the schemas that pystac brings along (core) and its classes for the extensions; no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac
import pystac.validation
import pytest
from journal_scenes import new_scene
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.sar import Polarization, SarExtension
from pystac.stac_io import DefaultStacIO
from stored_scenes import FACTS, done_scene

from fusar_edge import __version__
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.sar.scene import open_scene
from fusar_edge.service.journal import Journal, SceneRow
from fusar_edge.service.pipeline.work import facts_from_scene
from fusar_edge.service.results import collection_from_journal
from fusar_edge.service.stac import PROCESSING, PROJECTION, SAR, item_from_collection

GRD = "S1A_IW_GRDH_1SDV_20150203T043109_20150203T043134_004454_00574F_FEC3.tif"
MEASUREMENT = "s1a-ew-grd-hh-20210105t015012-20210105t015037-036000-043788-001.tiff"
OPERA = "OPERA_L2_RTC-S1_T064-135518-IW1_20230101T015012Z_20230102T000000Z_S1B_30_v1.0_VH.tif"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: the core's schemas come with pystac; those of extensions do not."""

    def refuse(self: DefaultStacIO, href: str, *args: Any, **kwargs: Any) -> str:
        raise AssertionError(f"{href} would be fetched")

    monkeypatch.setattr(DefaultStacIO, "read_text_from_href", refuse)


def item_of(journal: Journal, row: SceneRow, bundle: Bundle) -> pystac.Item:
    """Written and read again; validated against the core schemas."""
    text = json.dumps(item_from_collection(collection_from_journal(journal, row, bundle), row), allow_nan=False)
    data = json.loads(text)
    pystac.validation.validate_dict({**data, "stac_extensions": []})
    return pystac.Item.from_dict(data)


def test_an_item_says_what_where_when_and_with_what(journal: Journal, bundle: Bundle) -> None:
    row = done_scene(journal)
    item = item_of(journal, row, bundle)
    assert (item.id, item.bbox, item.geometry) == (row.id, FACTS["bbox"], FACTS["geometry"])
    assert item.datetime is not None
    assert item.datetime.isoformat() == "2021-01-05T01:50:12+00:00"
    assert item.properties["processing:software"] == {"fusar-edge": __version__}
    assert item.properties["processing:level"] == "L4"
    assert item.properties["fusar_edge:counts"]["detections"] == 2
    assert item.properties["fusar_edge:bundle"]["sha256"] == bundle.sha256
    result = item.assets["result"]
    assert (result.href, result.media_type, result.extra_fields["mlm:name"]) == (
        "./result.geojson",
        "application/geo+json",
        bundle.settings.name,
    )
    assert PROCESSING in item.stac_extensions


def test_a_projected_scene_says_its_code_and_shape(journal: Journal, bundle: Bundle) -> None:
    item = item_of(journal, done_scene(journal), bundle)
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.shape) == ("EPSG:32611", [504, 1008])
    unnamed = item_of(journal, done_scene(journal, 1, {"crs": "ground control points"}), bundle)
    assert PROJECTION not in unnamed.stac_extensions
    assert not [name for name in unnamed.properties if name.startswith("proj:")]


@pytest.mark.parametrize(
    ("name", "mode", "product", "polarisations"),
    [
        (GRD, "IW", "GRD", [Polarization.VV, Polarization.VH]),
        (MEASUREMENT, "EW", "GRD", [Polarization.HH]),
        (OPERA, "IW", "RTC-S1", [Polarization.VH]),
    ],
)
def test_a_product_name_tells_the_radar(
    journal: Journal, bundle: Bundle, name: str, mode: str, product: str, polarisations: list[Polarization]
) -> None:
    item = item_of(journal, done_scene(journal, name=name), bundle)
    sar = SarExtension.ext(item)
    assert (sar.instrument_mode, sar.product_type, sar.polarizations) == (mode, product, polarisations)
    assert sar.frequency_band == "C"
    assert item.common_metadata.platform in ("sentinel-1a", "sentinel-1b")


def test_of_an_unknown_product_nothing_is_said_about_the_radar(journal: Journal, bundle: Bundle) -> None:
    item = item_of(journal, done_scene(journal, name="harbour.tif"), bundle)
    assert SAR not in item.stac_extensions
    assert not [name for name in item.properties if name.startswith("sar:")]


def test_an_unknown_time_is_an_interval_that_ends_when_the_scene_came(journal: Journal, bundle: Bundle) -> None:
    row = done_scene(journal, facts={"acquired": None})
    item = item_of(journal, row, bundle)
    assert item.datetime is None
    assert item.properties["start_datetime"] == "1970-01-01T00:00:00Z"
    assert item.properties["end_datetime"] == "2025-06-15T15:06:40Z"


def test_the_scene_is_linked_where_it_is_ours_with_its_checksum(journal: Journal, bundle: Bundle) -> None:
    scene_id = new_scene(1).id
    elsewhere = done_scene(journal, 0, path=Path("/secret place") / "a b.tif", submitted_as="/secret place/a b.tif")
    assert "scene" not in item_of(journal, elsewhere, bundle).assets
    ours = done_scene(journal, 1, path=Path("/secret place/scenes") / scene_id / "a b.tif")
    item = item_of(journal, ours, bundle)
    scene = item.assets["scene"]
    assert scene.href == f"../../scenes/{scene_id}/a%20b.tif"
    file = FileExtension.ext(scene)
    assert (file.size, file.checksum) == (1001, "1220" + f"{1:064x}")
    assert "secret place" not in json.dumps(item.to_dict())


def test_a_fetched_scene_is_linked_where_it_was_without_user_or_signature(journal: Journal, bundle: Bundle) -> None:
    row = done_scene(journal, submitted_as="https://me:word@host.org:8443/a/b.tif?sig=abc#x", source="stac")
    scene = item_of(journal, row, bundle).assets["scene"]
    assert scene.href == "https://host.org:8443/a/b.tif"


def test_the_port_of_los_angeles_makes_a_valid_item(journal: Journal, bundle: Bundle, real_data: Path) -> None:
    path = real_data / "scenes" / "s1_port_la_20210105_utm11n_30m_db.tif"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    with open_scene(path, radiometry=bundle.radiometry) as scene:
        facts = facts_from_scene(scene, bundle, None, None)
    item = item_of(journal, done_scene(journal, facts=facts, name=path.name), bundle)
    assert item.bbox is not None
    west, south, east, north = item.bbox
    assert -119 < west < east < -117
    assert 33 < south < north < 34.5
