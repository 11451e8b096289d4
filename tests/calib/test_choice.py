"""The choice of the calibration set, its listing, and the check against evaluation data, on images of a few pixels."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusar_edge.anchors.per_image import write_anchor_file
from fusar_edge.calib.tiles import choice
from fusar_edge.calib.tiles import listing as listing_module
from fusar_edge.calib.tiles.choice import CalibrationSet, choose, pixels_sha256, turns
from fusar_edge.calib.tiles.land_cover import image_statistics, k_means, mean_vector
from fusar_edge.calib.tiles.listing import check_disjoint, listing, read_listing, write_listing
from fusar_edge.data.tasks import TASKS, canonical_prompt
from fusar_edge.errors import DataError, OutputExistsError
from fusar_edge.manifest import Manifest, sha256_file, write_manifest
from fusar_edge.sar.image import grey_from_file
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY
from fusar_edge.specs import SetSpec

Vector = npt.NDArray[np.float64]


def write_image(path: Path, seed: int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(path, **options)


def write_data(
    folder: Path,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = ("count",),
    anchors: dict[int, Vector] | None = None,
    name: str = "train.jsonl",
) -> Path:
    """A data set with an image a seed; `anchors`: seed -> [64]. Returns its triplet manifest."""
    rows = []
    for seed in seeds:
        image = f"images/{seed:04d}.png"
        write_image(folder / image, seed)
        row = {"image": image, "answer": "1"}
        if anchors and seed in anchors:
            row["aef"] = f"anchors/{seed:04d}.npz"
            (folder / "anchors").mkdir(exist_ok=True)
            write_anchor_file(folder / row["aef"], [anchors[seed]] * 2, [[0, 0], [1, 1]], force=True)
        rows += [row | {"task": task, "question": question(task)} for task in tasks]
    return write_records(folder / name, rows)


def write_records(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def question(task: str) -> str:
    return "the target in the box [0, 0, 504, 504]?" if task == "classify" else canonical_prompt(task, "ship")


def spec(tiles: int = 4, held_out: int = 2, clusters: int = 3, seed: int = 0) -> SetSpec:
    return SetSpec(tiles=tiles, held_out=held_out, clusters=clusters, seed=seed)


def drawn(manifests: Sequence[Path], asked: SetSpec) -> CalibrationSet:
    return choose(manifests, asked, DEFAULT_RADIOMETRY)


def names(chosen: CalibrationSet) -> list[tuple[str, str, str | None, int]]:
    return [
        (t.manifest.parent.name, t.triplet.image.name, t.triplet.task, t.cluster)
        for t in [*chosen.tiles, *chosen.held_out]
    ]


def unit(*hot: int) -> Vector:
    vector = np.zeros(64)
    vector[list(hot)] = 1
    return vector / np.linalg.norm(vector)


# The choice ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    plain=st.lists(st.integers(0, 12), min_size=2, max_size=12, unique=True),
    anchored=st.sets(st.integers(0, 12), max_size=8),
    other=st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True),
    asked=st.builds(spec, st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(-5, 5)),
)
def test_no_image_is_chosen_twice_and_as_many_as_there_are_are_chosen(
    plain: list[int], anchored: set[int], other: list[int], asked: SetSpec
) -> None:
    with tempfile.TemporaryDirectory() as name:
        a = write_data(Path(name, "a"), plain, anchors={seed: unit(seed % 5) for seed in anchored})
        b = write_data(Path(name, "b"), other, tasks=("grid", "detect"))
        chosen = drawn([a, b], asked)
    hashes = [tile.pixels_sha256 for tile in [*chosen.tiles, *chosen.held_out]]
    assert len(hashes) == len(set(hashes))
    distinct = len({*plain, *other})
    if distinct >= asked.tiles + asked.held_out:
        assert (len(chosen.tiles), len(chosen.held_out)) == (asked.tiles, asked.held_out)
    else:
        assert len(chosen.held_out) == min(asked.held_out, max(1, distinct // 5))
        assert len(chosen.tiles) == min(asked.tiles, distinct - len(chosen.held_out))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_groups_that_are_not_exhausted_give_equal_numbers_within_one(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(sizes)))
    held = data.draw(st.integers(0, count))
    result = turns(sizes, count, held)
    assert (sum(n for n, _ in result), sum(out for _, out in result)) == (count, held)
    assert all(0 <= out <= n <= size for (n, out), size in zip(result, sizes, strict=True))
    assert all(abs(out - n * held / max(count, 1)) < 1 for n, out in result)
    rest = [(n, out, n - out) for (n, out), size in zip(result, sizes, strict=True) if n < size]
    assert all(max(column) - min(column) <= 1 for column in zip(*rest, strict=True))
    most = max((n for n, *_ in rest), default=0)
    assert all(n in (size, most, most - 1) for (n, _), size in zip(result, sizes, strict=True))


def test_a_source_of_few_images_is_not_drowned_by_one_of_many(tmp_path: Path) -> None:
    few, many = write_data(tmp_path / "few", range(5)), write_data(tmp_path / "many", range(100, 160))
    chosen = drawn([many, few], spec(tiles=8, held_out=2))
    assert Counter(tile.manifest for tile in chosen.tiles) == {few: 4, many: 4}
    assert Counter(tile.manifest for tile in chosen.held_out) == {few: 1, many: 1}


def test_images_with_and_without_anchors_take_turns(tmp_path: Path) -> None:
    data = write_data(tmp_path, range(30), anchors={seed: unit(seed) for seed in range(6)})
    chosen = drawn([data], spec(tiles=6, held_out=2))
    for part, each in ((chosen.tiles, 3), (chosen.held_out, 1)):
        assert Counter(tile.modality for tile in part) == {"sar": each, "sar+anchors": each}
        assert all((tile.modality == "sar") == (tile.triplet.aef is None) for tile in part)


def test_land_cover_takes_turns_by_the_mean_alphaearth_vector(tmp_path: Path) -> None:
    kinds = [0] * 30 + [1] * 3 + [2] * 3
    data = write_data(tmp_path, range(36), anchors={seed: unit(kind, 10) for seed, kind in enumerate(kinds)})
    chosen = drawn([data], spec(tiles=6, held_out=3))
    for part, each in ((chosen.tiles, 2), (chosen.held_out, 1)):
        cover = Counter((kinds[int(tile.triplet.image.stem)], tile.cluster) for tile in part)
        assert sorted(kind for kind, _ in cover) == [0, 1, 2]
        assert sorted(cluster for _, cluster in cover) == [0, 1, 2]
        assert set(cover.values()) == {each}


def test_land_cover_takes_turns_by_image_statistics_where_there_are_no_anchors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bright = np.kron(random.uniform(100, 250, (6, 6)), np.ones((8, 8)))
    kinds = ["sea"] * 30 + ["town"] * 4
    for number, kind in enumerate(kinds):
        mean = bright if kind == "town" else np.full((48, 48), 15.0)
        pixels = np.clip(mean * random.uniform(0.6, 1.4, mean.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "task": "count", "answer": "1"} for number in range(len(kinds))]
    chosen = drawn([write_records(tmp_path / "t.jsonl", rows)], spec(tiles=6, held_out=2, clusters=2))
    assert Counter(kinds[int(tile.triplet.image.stem)] for tile in chosen.tiles) == {"sea": 3, "town": 3}


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
def test_k_means_leaves_every_point_with_the_nearest_mean(number: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    points = random.integers(0, 4, (number, 2)).astype(np.float64)
    labels = k_means(points, count, random, iterations=1000)
    used = np.unique(labels)
    assert used.max() < count
    gaps = np.stack([np.linalg.norm(points - points[labels == label].mean(axis=0), axis=1) for label in used], axis=1)
    own = gaps[np.arange(number), np.searchsorted(used, labels)]
    assert (own <= gaps.min(axis=1) + 1e-9).all()


def test_k_means_parts_separate_groups_whatever_their_sizes() -> None:
    groups = np.repeat(np.arange(4), (200, 3, 3, 1))
    points = np.eye(4)[groups] * 100 + np.random.default_rng(0).normal(size=(207, 4))
    labels = k_means(points, 4, np.random.default_rng(1))
    assert len({*zip(groups, labels, strict=True)}) == 4


def test_the_mean_vector_is_a_direction_and_zero_vectors_have_none(tmp_path: Path) -> None:
    write_anchor_file(tmp_path / "a.npz", [unit(0), unit(1), np.zeros(64)], [[0, 0]] * 3)
    write_anchor_file(tmp_path / "zero.npz", np.zeros((2, 64)), [[0, 0]] * 2)
    np.testing.assert_allclose(mean_vector(tmp_path / "a.npz"), unit(0, 1), atol=1e-6)
    assert not mean_vector(tmp_path / "zero.npz").any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (500, 500)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_statistics_of_a_blank_image_are_finite(shape: tuple[int, int], value: float) -> None:
    assert np.isfinite(image_statistics(np.full(shape, value, np.float32))).all()


def test_tasks_take_turns_over_each_part(tmp_path: Path) -> None:
    data = write_data(tmp_path, range(30), tasks=TASKS)
    chosen = drawn([data], spec(tiles=17, held_out=8))
    for part in (chosen.tiles, chosen.held_out):
        counts = Counter(tile.triplet.task for tile in part)
        assert set(counts) == set(TASKS)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_an_image_with_one_task_leaves_the_other_tasks_to_the_others(tmp_path: Path) -> None:
    one, three = (
        write_data(tmp_path / "one", range(20), tasks=["count"]),
        write_data(tmp_path / "three", range(50, 70), tasks=["count", "grid", "caption"]),
    )
    chosen = drawn([one, three], spec(tiles=12, held_out=1))
    assert Counter(tile.triplet.task for tile in chosen.tiles if tile.manifest == three).keys() == {"grid", "caption"}
    counts = Counter(tile.triplet.task for tile in chosen.tiles)
    assert set(counts.values()) <= {6, 3}


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3), st.sampled_from([1, 16]))
def test_the_choice_depends_on_neither_folder_nor_order(random: Random, seed: int, cap: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "CANDIDATES", cap)
        asked, here, there = spec(tiles=8, held_out=3, seed=seed), Path(name, "here"), Path(name, "deeper/there")
        a = write_data(here / "a", range(28), tasks=["count"], anchors={n: unit(n % 4) for n in range(14)})
        b = write_data(here / "b", range(14, 32), tasks=["count"])
        before = drawn([a, b], asked)
        shutil.copytree(here, there)
        for manifest in there.glob("*/train.jsonl"):
            lines = manifest.read_text().splitlines()
            random.shuffle(lines)
            manifest.write_text("\n".join(lines))
        after = drawn([there / "b/train.jsonl", there / "a/train.jsonl"], asked)
        assert names(after) == names(before)
        assert listing(after) == listing(before)


def test_renamed_images_are_chosen_alike(tmp_path: Path) -> None:
    data = write_data(tmp_path / "a", range(30))
    rows = []
    for number, image in enumerate(sorted((data.parent / "images").iterdir(), reverse=True)):
        image.rename(data.parent / f"{number}.png")
        rows.append({"image": f"{number}.png", "task": "count", "answer": "1"})
    renamed = write_records(tmp_path / "a/renamed.jsonl", rows)
    again = write_data(tmp_path / "b", range(30))
    first, second = (drawn([manifest], spec(tiles=8)) for manifest in (renamed, again))
    assert [tile.pixels_sha256 for tile in first.tiles] == [tile.pixels_sha256 for tile in second.tiles]


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    data = write_data(tmp_path, range(40))
    assert len({frozenset(names(drawn([data], spec(seed=seed)))) for seed in range(4)}) == 4


def test_reencoded_copies_are_one_image(tmp_path: Path) -> None:
    for name in ("a.png", "copy/a.png", "a.bmp"):
        write_image(tmp_path / name, 0, **({"compress_level": 0} if name == "copy/a.png" else {}))
    write_image(tmp_path / "b.png", 1)
    assert sha256_file(tmp_path / "a.png") != sha256_file(tmp_path / "copy/a.png")
    rows = [{"image": image, "task": "count", "answer": "1"} for image in ("a.png", "copy/a.png", "a.bmp", "b.png")]
    data = write_records(tmp_path / "t.jsonl", rows)
    for seed in range(5):
        chosen = drawn([data], spec(seed=seed))
        assert len(chosen.tiles) == len(chosen.held_out) == 1
        assert chosen.tiles[0].pixels_sha256 != chosen.held_out[0].pixels_sha256


def test_an_image_of_two_manifests_has_the_questions_of_both(tmp_path: Path) -> None:
    a, b = (write_data(tmp_path, range(8), tasks=[task], name=f"{task}.jsonl") for task in ("count", "grid"))
    chosen = drawn([a, b], spec(tiles=6, held_out=2))
    assert Counter((t.manifest, t.triplet.task) for t in chosen.tiles) == {(a, "count"): 3, (b, "grid"): 3}


def test_an_image_with_anchors_in_one_manifest_is_not_also_one_without(tmp_path: Path) -> None:
    a = write_data(tmp_path / "a", range(6), tasks=["grid"])
    b = write_data(tmp_path / "b", range(6), anchors={seed: unit(seed) for seed in range(6)})
    for order in ([a, b], [b, a]):
        chosen = drawn(order, spec())
        assert {(t.modality, t.manifest, t.triplet.task) for t in chosen.tiles} == {("sar+anchors", b, "count")}


@pytest.mark.parametrize("copies", [1, 3])
def test_one_image_is_refused_however_many_copies_it_has(tmp_path: Path, copies: int) -> None:
    for number in range(copies):
        write_image(tmp_path / f"{number}.png", 0)
    rows = [{"image": f"{number}.png", "task": "count", "answer": "1"} for number in range(copies)]
    data = write_records(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError, match=r"t\.jsonl: distinct images: 1; calibration needs 2 or more"):
        drawn([data], spec())


def test_no_more_images_are_decoded_than_the_cap_and_progress_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "CANDIDATES", 2)
    read: list[Path] = []
    monkeypatch.setattr(choice, "grey_from_file", lambda path, r: read.append(path) or grey_from_file(path, r))
    data = write_data(tmp_path, range(40), tasks=("count", "grid"), anchors={seed: unit(seed) for seed in range(5)})
    seen: list[tuple[int, int]] = []
    choose([data], spec(tiles=4, held_out=2), DEFAULT_RADIOMETRY, lambda *step: seen.append(step))
    assert seen == [(done, 17) for done in range(1, 18)]  # 5 with anchors, 2 x (4 + 2) without
    assert len(set(read)) == len(read) == 17


# The listing --------------------------------------------------------------------------------------------------------


def test_the_listing_names_each_tile_with_its_hashes(tmp_path: Path) -> None:
    anchors = {seed: unit(seed) for seed in range(4)}
    data = write_data(tmp_path / "harbour", range(8), tasks=("count", "grid"), anchors=anchors)
    chosen = drawn([data], spec(tiles=4, held_out=2))
    rows = listing(chosen)
    assert json.loads(json.dumps(rows)) == rows == listing(chosen)
    assert [row["part"] for row in rows] == ["ranges"] * 4 + ["held_out"] * 2
    assert sum(row["aef"] is None for row in rows) == 3
    for row, tile in zip(rows, [*chosen.tiles, *chosen.held_out], strict=True):
        assert row["sha256"] == sha256_file(tmp_path / row["image"])
        assert row["pixels_sha256"] == pixels_sha256(grey_from_file(tmp_path / row["image"]))
        assert row["aef_sha256"] == (row["aef"] and sha256_file(tmp_path / row["aef"]))
        assert row["image"].startswith("harbour/images/")
        assert (row["task"], row["question"]) == (tile.triplet.task, tile.triplet.question)
        assert (row["modality"], row["cluster"]) == (tile.modality, tile.cluster)


def test_licence_and_source_are_what_the_data_sets_folder_says(tmp_path: Path) -> None:
    settings_by_name = {
        "converted": {"licence": "CC0-1.0", "source": "a paper"},
        "simulated": {"simulated": True, "note": "nothing was measured"},
        "other": {"kind": "x"},
        "bare": None,
    }
    data = [write_data(tmp_path / name, [2 * n, 2 * n + 1]) for n, name in enumerate(settings_by_name)]
    for manifest, said in zip(data, settings_by_name.values(), strict=True):
        if said is not None:
            write_manifest(manifest.parent, Manifest(stage="convert", settings=said))
    rows = listing(drawn(data, spec(tiles=7, held_out=1)))
    found = {row["image"].split("/")[0]: (row["licence"], row["source"]) for row in rows}
    assert found == {
        "converted": ("CC0-1.0", "a paper"),
        "simulated": ("none needed: simulated data", "nothing was measured"),
        "other": ("not stated", "not stated"),
        "bare": ("not stated", "not stated"),
    }


def test_a_manifest_json_that_was_changed_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, range(4))
    write_manifest(tmp_path, Manifest(stage="convert", settings={"licence": "CC-BY-NC-4.0"}))
    sealed = tmp_path / "manifest.json"
    sealed.write_text(sealed.read_text().replace("CC-BY-NC-4.0", "CC0-1.0"))
    with pytest.raises(DataError, match=r"manifest\.json was changed"):
        listing(drawn([data], spec()))


def test_a_triplet_list_that_is_named_manifest_json_states_no_licence(tmp_path: Path) -> None:
    data = write_data(tmp_path, range(4), name="manifest.json")
    assert {row["licence"] for row in listing(drawn([data], spec()))} == {"not stated"}


def test_a_manifest_given_by_a_relative_path_lists_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "harbour", range(8))
    monkeypatch.chdir(data.parent)
    assert listing(drawn([Path(data.name)], spec())) == listing(drawn([data], spec()))


def test_a_listing_is_read_as_it_was_written_and_not_overwritten(tmp_path: Path) -> None:
    rows = listing(drawn([write_data(tmp_path, range(8))], spec()))
    rows[0]["question"] = "Wie viele\u2028 Schiffe – “船”?\n"
    write_listing(tmp_path / "tiles.jsonl", rows)
    assert read_listing(tmp_path / "tiles.jsonl") == rows
    with pytest.raises(OutputExistsError):
        write_listing(tmp_path / "tiles.jsonl", rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "sha256": "abc"}, r"sha256"),
        (lambda row: {**row, "part": "test"}, r"part"),
        (lambda row: {**row, "colour": 1}, r"colour"),
        (lambda row: {key: row[key] for key in row if key != "pixels_sha256"}, r"pixels_sha256"),
        (lambda row: [row], r"object"),
    ],
)
def test_a_line_that_lists_no_tile_is_named(tmp_path: Path, change: object, said: str) -> None:
    rows = listing(drawn([write_data(tmp_path, range(4))], spec()))
    write_listing(tmp_path / "l.jsonl", [rows[0], change(rows[1])])  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"l\.jsonl:2: .*{said}.*calibrate again"):
        read_listing(tmp_path / "l.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"", "lists no tile"), (b"{", r"l\.jsonl:1"), (b'{"part": "\xff"}', r"l\.jsonl:1")],
)
def test_a_file_that_is_no_listing_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "l.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_listing(tmp_path / "l.jsonl")


# Evaluation data ----------------------------------------------------------------------------------------------------


def test_evaluation_images_that_are_tiles_are_counted_and_named(tmp_path: Path) -> None:
    rows = listing(drawn([write_data(tmp_path / "train", range(6))], spec(tiles=4, held_out=2)))
    evaluation = write_data(tmp_path / "val", [7, 2, 3, 4, 5, 8], tasks=("count", "grid"), name="val.jsonl")
    with pytest.raises(DataError) as caught:
        check_disjoint(rows, evaluation, DEFAULT_RADIOMETRY)
    message = str(caught.value)
    shared = [str(tmp_path / f"val/images/000{seed}.png") for seed in (2, 3, 4)]
    assert message.startswith(f"{evaluation}: 4 of 6 images are also calibration tiles")
    assert ", ".join(shared) + ", ..." in message
    assert "0005" not in message
    assert "evaluate on a manifest without them" in message


@pytest.mark.parametrize("part", ["ranges", "held_out"])
@pytest.mark.parametrize("key", ["sha256", "pixels_sha256"])
def test_a_tile_of_either_part_is_found_by_its_bytes_and_by_its_pixels(tmp_path: Path, part: str, key: str) -> None:
    rows = listing(drawn([write_data(tmp_path, range(6))], spec()))
    row = next(row for row in rows if row["part"] == part)
    other = "sha256" if key == "pixels_sha256" else "pixels_sha256"
    image = f"images/{Path(row['image']).name}"
    evaluation = write_records(tmp_path / "val.jsonl", [{"image": image, "task": "count", "answer": "1"}])
    with pytest.raises(DataError, match="1 of 1 images"):
        check_disjoint([{**row, other: "0" * 64}], evaluation, DEFAULT_RADIOMETRY)
    check_disjoint([{**row, other: "0" * 64, key: "0" * 64}], evaluation, DEFAULT_RADIOMETRY)


@pytest.mark.parametrize(("suffix", "options"), [(".png", {"compress_level": 0}), (".bmp", {}), (".tif", {})])
def test_a_reencoded_copy_of_a_tile_is_found(tmp_path: Path, suffix: str, options: dict[str, int]) -> None:
    rows = listing(drawn([write_data(tmp_path / "train", range(2))], spec()))
    write_image(tmp_path / f"val/copy{suffix}", 1, **options)
    evaluation = write_records(tmp_path / "val/v.jsonl", [{"image": f"copy{suffix}", "task": "count", "answer": "1"}])
    assert sha256_file(tmp_path / f"val/copy{suffix}") not in {row["sha256"] for row in rows}
    with pytest.raises(DataError, match="1 of 1 images"):
        check_disjoint(rows, evaluation, DEFAULT_RADIOMETRY)


def test_evaluation_data_without_a_tile_pass_and_each_image_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = listing(drawn([write_data(tmp_path / "train", range(6))], spec()))
    evaluation = write_data(tmp_path / "val", range(10, 15), tasks=TASKS)
    read: list[Path] = []
    monkeypatch.setattr(listing_module, "grey_from_file", lambda path, r: read.append(path) or grey_from_file(path, r))
    seen: list[tuple[int, int]] = []
    check_disjoint(rows, evaluation, DEFAULT_RADIOMETRY, progress=lambda *step: seen.append(step))
    assert seen == [(done, 5) for done in range(1, 6)]
    assert len(read) == 5
