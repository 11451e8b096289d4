"""Runs that never happened: parts with known times, noise as machines make it, and one stage slowed at will."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusar_edge.bench.observations import Observation

USUAL_MS = {
    "raster_read": 4.0,
    "radiometry": 2.0,
    "resize": 1.0,
    "anchors": 0.4,
    "vision": 60.0,
    "prefix": 30.0,
    "prefill": 8.0,
    "decode": 40.0,
    "write": 1.5,
}
TILES = 4
TASKS = ("count", "caption")


def simulated_run(
    seed: int, slow: Mapping[str, float] | None = None, *, queries: int = 80, machine: float = 1.0
) -> list[Observation]:
    """Each part's time: usual x tile's own x drift (correlated in time) x jitter (skewed), now and then a hiccup.

    `slow`: part -> factor. `machine`: factor on everything, the reference kernel included.
    """
    random = np.random.default_rng(seed)
    factors = dict.fromkeys(USUAL_MS, machine) | {p: machine * f for p, f in (slow or {}).items()}
    level, drift, made = np.exp(random.normal(0, 0.01)), 0.0, list[Observation]()
    for query in range(queries):
        drift = 0.9 * drift + random.normal(0, 0.02)
        tile = query % TILES
        common = level * np.exp(drift)
        at = 1000.0 + query

        def add(part: str, unit: str, ms: float, at: float = at) -> float:
            made.append(Observation(scenario="single", part=part, unit_id=unit, ms=float(ms), at=at))
            return ms

        def jittered(ms: float, common: float = common) -> float:
            return ms * common * np.exp(abs(random.normal(0, 0.05))) * (3.0 if random.random() < 0.02 else 1.0)

        whole = 0.0
        for part, usual in USUAL_MS.items():
            for task in TASKS if part in ("prefill", "decode") else ("",):
                unit = f"tile {tile}/{task}" if task else f"tile {tile}"
                longer = 3.0 if task == "caption" else 1.0
                ms = jittered(usual * longer * (1 + 0.3 * tile)) * factors[part]
                whole += add(part, unit, ms)
                if part == "prefill":
                    add("ttft", unit, ms + jittered(0.3))
                if part == "decode":
                    add("tpot", unit, ms / (8 * longer))
        add("tile", f"tile {tile}", whole)
        add("query", f"query {query}", whole)
        add("reference", "reference", jittered(1.0) * machine)
    return made
