"""`fusar-edge demo`: the whole device side on a simulated scene, what was simulated printed beside what was said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusar_edge.data.tasks import count_answer, grid_answer
from fusar_edge.data.truth import Target, Truth
from fusar_edge.manifest import check_output, output_folder
from fusar_edge.runtime.bundle import bundle_path
from fusar_edge.runtime.detections import tile_box
from fusar_edge.runtime.interpreter import Interpretation, Progress
from fusar_edge.runtime.job import interpret_to_files
from fusar_edge.runtime.tile import Record

if TYPE_CHECKING:
    from fusar_edge.data.simulator import SimulatedScene

SEED, SPACING_M, SHIPS, KIND = 7, 3.0, 9, "coast"
SIZE = 944
"""Two by two tiles of 504 px that share 64 px."""
TASKS = ("caption", "count", "grid", "detect")

Show = Callable[[str], None]


def demo(
    out: Path,
    *,
    force: bool = False,
    bundle: str | Path = "default",
    seed: int = SEED,
    threads: int = 0,
    show: Show | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate a scene, interpret it, and make the folder `out`: scene.tif, result.geojson, overlay.png.

    `show` prints a line of text (rich markup; None: a rich console). Returns the summary for the JSON line. The
    folder appears whole or not at all.
    """
    from fusar_edge.data.simulator import simulate_scene
    from fusar_edge.data.simulator.geotiff import write_geotiff

    check_output(out, force)
    bundle_path(bundle)
    show = show or _console()
    scene = simulate_scene(seed, SIZE, SPACING_M, kind=KIND, count=SHIPS)
    show(
        f"[bold]Simulated[/bold] scene, seed {seed}: {SIZE} x {SIZE} px of {scene.spacing_m:g} m, {scene.kind}, "
        f"{len(scene.ships)} ships, {scene.looks} looks. Nothing in it was measured."
    )
    with output_folder(out, force=force) as work:
        write_geotiff(work / "scene.tif", scene)
        result, summary = interpret_to_files(
            bundle,
            [work / "scene.tif"],
            TASKS,
            out=work / "result.geojson",
            overlay=work / "overlay.png",
            values="power",
            threads=threads,
            progress=progress,
        )
    _tell(result, scene, show)
    names = {"scene": "scene.tif", "out": "result.geojson", "overlay": "overlay.png"}
    summary.pop("overlays")
    return {**summary, **{key: str(out / name) for key, name in names.items()}, "ships_simulated": len(scene.ships)}


def _tell(result: Interpretation, scene: SimulatedScene, show: Show) -> None:
    """For each tile: the caption, and count and grid beside the simulated truth."""
    from rich.markup import escape

    interpreted = result.scenes[0]
    size = result.bundle.settings.coordinate_size
    for index, window in enumerate(interpreted.windows):
        said = {record.task: record for record in interpreted.records if record.tile == index}
        truth = Truth(tuple(Target(tile_box(box, window, size), "ship") for box in scene.boxes))
        rows = {"count": count_answer(truth), "grid": grid_answer(truth)}
        show(f"[bold]tile {index}[/bold]  {escape(_caption(said.get('caption')))}")
        for task, simulated in rows.items():
            if record := said.get(task):
                answer = escape(record.answer.parsed.text.strip())
                confidence = record.answer.generation.confidence
                show(f"  {task}: {answer} (confidence {confidence:.2f}); simulated: {simulated}")
    show(f"{len(interpreted.detections)} ships detected, {len(scene.ships)} were simulated.")


def _caption(record: Record | None) -> str:
    return " | ".join(record.answer.parsed.text.strip().splitlines()) if record else "no data"


def _console() -> Show:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda text: console.print(text, soft_wrap=True)
