"""The page in a real browser: what an operator sees, hears and presses.

Every page of these tests must ask its own service alone, and write no error into the console (fixture `look`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from page_browser import watched_page
from page_station import Station, station, write_harbour
from PIL import Image

from fusar_edge.service.journal import SceneRow
from fusar_edge.service.sinks.courier import SinkStatus

Look = Callable[..., Any]
LIVE = "#health[data-state=good]"
AMBER, CYAN = (255, 178, 36), (53, 181, 216)
CAPTION = "Terrain: Open water\nFunctionality: Shipping water\nDistribution: Ships in a row"


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """A service without engines: its scenes say what the tests write."""
    with station(tmp_path_factory.mktemp("station")) as opened:
        yield opened


@pytest.fixture(scope="module")
def done(still: Station) -> SceneRow:
    """A finished scene of four tiles: three answered, one left out; two boxes that are one ship, and another one."""
    row = still.scene()
    still.start(row)
    still.answer(row, 0, [("caption", CAPTION, CAPTION, 0.9), ("count", 2, "2", 0.8), ("detect", None, "[{", 0.3)])
    still.answer(row, 1, [("caption", CAPTION, CAPTION, 0.7)], [((200, 30, 215, 40), 0.95), ((270, 90, 290, 98), 0.4)])
    still.answer(row, 2, [("caption", CAPTION, CAPTION, 0.5)])
    still.leave_out(row, 3)
    still.finish(row)
    return row


@pytest.fixture(scope="module")
def finished_page(still: Station, done: SceneRow, browser: Any) -> Iterator[Any]:
    with watched_page(browser, at(still, done)) as opened:
        yield opened


@pytest.fixture
def page(finished_page: Any) -> Any:
    """The finished scene as it is when it is opened: a page is slow to load without a GPU."""
    finished_page.set_viewport_size({"width": 1440, "height": 900})
    if finished_page.is_visible("#detail"):
        finished_page.click("#detail header button")
    finished_page.check("[data-layer=boxes]")
    finished_page.fill("#confidence", "0")
    finished_page.select_option("#order", "tile")
    for chip in finished_page.locator("#tasks [aria-pressed=false]").all():
        chip.click()
    settled(finished_page, "7 records")
    return finished_page


def at(served: Station, row: SceneRow) -> str:
    return f"{served.url}/#scene={row.id}"


def records(page: Any) -> str:
    return str(page.text_content("#records-count"))


def pixels(page: Any, colour: tuple[int, int, int], near: int = 40) -> int:
    """How many pixels of the map, without what lies over its edges, are about this colour."""
    box = page.locator("#map canvas").bounding_box()
    clip = {"x": box["x"] + 5, "y": box["y"] + 60, "width": box["width"] - 60, "height": box["height"] - 130}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as file:
        seen = np.asarray(file.convert("RGB")).astype(int)
    return int((np.abs(seen - colour).max(axis=2) < near).sum())


def settled(page: Any, count: str) -> None:
    """The records have come, the map has drawn all it was given."""
    page.wait_for_selector(f"#records-count:text-is('{count}')")
    page.wait_for_selector("#map[aria-busy=false]")


def test_a_finished_scene_shows_its_picture_its_tiles_and_its_boxes(page: Any) -> None:
    assert page.text_content("#scene-title h2") == "harbour.tif"
    assert "2021-01-05T13:51:07Z" in page.text_content("#scene-title")
    assert pixels(page, AMBER) > 100
    assert pixels(page, CYAN) > 300
    assert pixels(page, (255, 255, 255), 30) > 300, "ships of the picture"
    page.uncheck("[data-layer=boxes]")
    settled(page, "7 records")
    assert pixels(page, AMBER) == 0


def test_filters_choose_what_is_listed_and_what_is_drawn(page: Any) -> None:
    page.fill("#confidence", "0.6")
    settled(page, "4 of 7 records")
    assert page.text_content("#confidence-value") == "≥ 0.60"
    some = pixels(page, AMBER)
    page.fill("#confidence", "0")
    settled(page, "7 records")
    assert 0 < some < pixels(page, AMBER)
    page.click("#tasks [data-task=box]")
    settled(page, "5 of 7 records")
    assert page.get_attribute("#tasks [data-task=box]", "aria-pressed") == "false"
    assert pixels(page, AMBER) == 0
    page.select_option("#order", "confidence")
    page.wait_for_selector("#records-list .row >> nth=0 >> text=0.90")


def test_arrow_keys_walk_through_the_records(page: Any) -> None:
    page.focus("#records-list")
    for key, place in (("ArrowDown", "1"), ("ArrowDown", "2"), ("End", "7"), ("ArrowUp", "6"), ("Home", "1")):
        page.keyboard.press(key)
        row = page.locator(f"#{page.get_attribute('#records-list', 'aria-activedescendant')}")
        assert (row.get_attribute("aria-posinset"), row.get_attribute("aria-selected")) == (place, "true")
        assert row.get_attribute("aria-setsize") == "7"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")
    assert page.evaluate("document.activeElement.id") == "records-list"


def test_a_record_shows_its_text_its_crop_and_its_box_from_close_by(still: Station, page: Any) -> None:
    page.click("#records-list .row >> nth=0")
    crop = page.get_attribute("#detail svg image", "href")
    assert crop.endswith("/tiles/0/crop.png")
    assert page.request.get(still.url + crop).headers["content-type"] == "image/png"
    assert page.locator("#detail dl.fields dt").all_text_contents()[:3] == ["Terrain", "Functionality", "Distribution"]
    assert "decode 130" in page.text_content("#detail")
    page.click("#records-list .row:has(.task.box) >> nth=0")
    views = [svg.get_attribute("viewBox") for svg in page.locator("#detail svg").all()]
    assert views[0] == "180 0 200 200"
    assert len(views) == 2
    assert float(views[1].split()[2]) < 100
    assert pixels(page, (255, 255, 255), 2) > 50


def test_a_click_on_the_map_chooses_the_tiles_record(page: Any) -> None:
    box = page.locator("#map canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.40, box["y"] + box["height"] * 0.42)
    page.wait_for_selector("#detail:not([hidden])")
    assert "Tile 0" in page.text_content("#detail header")


def test_tiles_light_up_and_are_read_out_as_they_finish(still: Station, look: Look) -> None:
    page = look(still.url, reduced_motion="no-preference")
    page.wait_for_selector("#health-text:has-text('Not ready: engine: not running')")
    page.check("#follow")
    row = still.scene("live.tif")
    page.wait_for_selector("#scenes-list .row:has-text('live.tif')")
    still.start(row)
    page.wait_for_selector("#scene-title:has-text('live.tif')")
    settled(page, "0 records")
    still.answer(row, 0, [("caption", CAPTION, CAPTION, 0.9)])
    page.wait_for_selector("#records-list .row:has-text('Open water')")
    page.wait_for_selector("#live:has-text('Tile 1 of 4: Terrain: Open water')", state="attached")
    assert page.get_attribute("#live", "aria-live") == "polite"
    page.wait_for_selector("#scenes-list [aria-selected=true]:has-text('1 of 4 tiles')")
    still.parts.journal.fail(row.id, "the disk broke", [])
    page.wait_for_selector("#scene-title .reason:has-text('the disk broke')")
    page.wait_for_selector("#scenes-list .row:has-text('failed: the disk broke')")
    still.parts.journal.note_watched(Path("cut.tif"), 9, 9, "", "it is cut")
    page.wait_for_selector("#upload-state .bad:has-text('cut.tif was refused: it is cut')")


def test_what_scenes_and_answers_say_is_text_and_never_markup(still: Station, look: Look) -> None:
    evil = "<img src=x onerror=document.title='owned'>"
    row = still.scene("a.tif", 260)
    still.parts.journal.start(row.id, {"acquired": evil, "tile_px": 260, "overlap_px": 0}, 1)
    still.answer(row, 0, [("caption", evil, f"Terrain: {evil}\nWater: {evil}", 0.9), ("classify", evil, evil, 0.5)])
    page = look(at(still, row))
    settled(page, "2 records")
    for number in (0, 1):
        page.click(f"#records-list .row >> nth={number}")
        assert evil in page.text_content("#detail")
    assert evil in page.text_content("#scene-title")
    assert page.title() == "fusar-edge"
    assert page.locator("main img").count() == 0


def test_a_file_can_be_added_and_a_bad_one_says_why(still: Station, look: Look, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.tif", write_harbour(tmp_path / "good.tif", 90, 77)
    bad.write_bytes(b"no TIFF at all")
    page = look(still.url, expected=(422,))
    page.wait_for_selector("#scenes-list .row")
    page.set_input_files("#upload-file", [bad, good])
    page.wait_for_selector("#scenes-list .row:has-text('good.tif')")
    assert "GeoTIFF" in page.text_content("#upload-state .bad")


def test_what_does_not_go_out_or_come_in_is_said(open_station: Callable[..., Station], look: Look) -> None:
    station = open_station()
    refused = SimpleNamespace(status=lambda: SinkStatus("mqtt", 0, 3, "connection refused"))
    station.parts.couriers.append(refused)  # type: ignore[arg-type]
    page = look(station.url)
    page.wait_for_selector("#troubles li:has-text('mqtt: connection refused')")
    station.parts.couriers.clear()
    page.wait_for_selector("#troubles li", state="detached")


def test_all_that_can_be_pressed_is_reached_by_the_tab_key_and_shows_it(page: Any) -> None:
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    reached: list[tuple[str, bool]] = []
    while len(reached) < 40 and (not reached or reached[-1][0] != "records-list"):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const e = document.activeElement, s = getComputedStyle(e), p = e.closest('label');"
                "const ring = (t) => t && t.outlineStyle !== 'none' && t.outlineWidth !== '0px';"
                "const seen = [s, p && getComputedStyle(p)].some(ring);"
                "return [e.id || e.className || e.textContent, seen]; }"
            )
        )
    names = [name for name, _ in reached]
    wanted = ["skip", "theme", "follow", "scenes-list", "upload-file", "confidence", "order", "records-list"]
    assert [name for name in names if name in wanted] == wanted
    assert any("maplibregl-canvas" in name for name in names)
    assert [name for name, seen in reached if not seen] == []


def test_colours_follow_the_system_until_they_are_chosen(still: Station, look: Look) -> None:
    def back(page: Any) -> int:
        return int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])

    page = look(still.url, color_scheme="dark")
    assert back(page) < 60
    page.emulate_media(color_scheme="light")
    assert back(page) > 200
    page.click("#theme")
    assert page.text_content("#theme") == "Dark"
    assert back(page) < 60
    page.reload()
    assert back(page) < 60


def test_nothing_moves_where_motion_is_not_wanted(page: Any) -> None:
    page.evaluate("document.body.append(Object.assign(document.createElement('i'), { className: 'progress' }))")
    duration = "getComputedStyle(document.querySelector('.progress')).transitionDuration"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(duration) != "0s"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"
    page.evaluate("document.querySelector('.progress').remove()")


def test_on_a_telephone_one_panel_stands_under_the_map(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("scenes", "engine", "records"):
        page.click(f"#tab-{name}")
        shown = [panel for panel in ("scenes", "engine", "records") if page.is_visible(f"#{panel}")]
        assert shown == [name]
        assert page.get_attribute(f"#tab-{name}", "aria-selected") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.is_visible("#map canvas")


def test_a_token_is_asked_for_once(open_station: Callable[..., Station], look: Look) -> None:
    guarded = open_station(require_token=True)
    token, _ = guarded.parts.tokens.create("operator", ["read"])
    guarded.scene()
    page = look(guarded.url, expected=(401,))
    page.wait_for_selector("#sign-in[open]")
    page.fill("#token", "wrong")
    page.click("#sign-in button")
    page.wait_for_selector("#sign-in-problem:has-text('not valid')")
    page.fill("#token", token)
    page.click("#sign-in button")
    page.wait_for_selector("#scenes-list .row:has-text('harbour.tif')")
    assert page.is_hidden("#sign-in")
    page.reload()
    page.wait_for_selector("#scenes-list .row:has-text('harbour.tif')")
    assert page.evaluate("document.cookie") == "", "scripts cannot read it"


def test_a_dropped_real_scene_is_captioned_on_the_map(
    open_station: Callable[..., Station], look: Look, real_data: Path
) -> None:
    running = open_station(engines=True)
    page = look(running.url)
    page.wait_for_selector(LIVE)
    source = real_data / "scenes" / "s1_port_la_20210105_utm11n_30m_db.tif"
    running.parts.intake.offer(source, name=source.name, source="watch", owned=False)
    page.wait_for_selector("#records-list .row:has-text('caption')")
    page.wait_for_selector("#scenes-list .mark.done")
    found = page.request.get(f"{running.url}{page.get_attribute('#scene-title .links a', 'href')}").json()
    kinds = [feature["properties"]["kind"] for feature in found["features"]]
    settled(page, f"{len(kinds)} records")
    assert page.locator("#tasks [data-task=box]").text_content() == f"box {kinds.count('detection')}"
    page.wait_for_selector("#latency tbody tr:nth-child(5)")
