"""The gate: an INT8 bundle is published where it keeps what FP32 can do, or with a waiver that says why not.

    stages    visual tokens (cosine, norm ratio), logits (cosine, KL divergence), greedy tokens; teacher-forced
    tasks     each metric of the evaluation manifest over FP32's, both greedy; paired bootstrap over questions

The bounds are those of the recipe that made the graphs ([gate], fusar_edge.specs.GateSpec). A task metric holds where
the ratio that was measured reaches the bound, as in MLPerf's accuracy rule; the interval says how sure that is. 99 %
cannot be told from 100 % where FP32 itself succeeds less than a hundred times in more than a hundred questions (boxes
of a model that hardly finds any): one success more or less is then beyond the bound. Such a metric fails where its
whole interval is below the bound (of no successes at all: where so few are unlikely), and otherwise is told and not
judged; nor is one judged that is 0 in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from fusar_edge.errors import GateError
from fusar_edge.eval.metrics import Measure, Scored, measures
from fusar_edge.specs import CalibRecipe, GateSpec

SEARCH = "--search finds the layers to keep"
NONE_OF = 3.69
"""97.5 % upper limit of the mean of a Poisson count that came out as 0."""


@dataclass(frozen=True)
class Check:
    """One line of the gate."""

    name: str
    """Such as `vision_cosine` or `detect.f1_0.25`."""
    value: float
    bound: float
    holds: bool | None
    """None: told and not judged."""
    note: str = ""
    interval_95: tuple[float, float] | None = None
    """Of a task metric's ratio."""
    least: bool = True
    """The bound is the least that is allowed; else the most."""

    def __str__(self) -> str:
        interval = "" if self.interval_95 is None else " [{:.3f}, {:.3f}]".format(*self.interval_95)
        rule = f"at {'least' if self.least else 'most'} {self.bound:.4g} is asked for"
        return f"{self.name} {self.value:.4g}{interval}, {rule}{self.note and f' ({self.note})'}"


def stage_checks(figures: Mapping[str, float], spec: GateSpec, note: str = "") -> list[Check]:
    """Of the figures of `calib.compare.compared`. What is NaN does not hold."""

    def least(name: str, bound: float) -> Check:
        return Check(name, figures[name], bound, figures[name] >= bound, note)

    def most(name: str, value: float, bound: float) -> Check:
        return Check(name, value, bound, value <= bound, note, least=False)

    return [
        least("vision_cosine", spec.vision_cosine),
        most("vision_norm", figures["vision_norm_off"], spec.vision_norm),
        least("logits_cosine", spec.logits_cosine),
        most("logits_norm", figures["logits_norm_off"], spec.logits_norm),
        least("token_agreement", spec.token_agreement),
        most("logits_kl", figures["logits_kl"], spec.logits_kl),
    ]


def check_figures(figures: Mapping[str, float], recipe: CalibRecipe, what: str, first: str = SEARCH) -> None:
    """What `calibrate` asks before it writes; tasks and tokens are asked by `build`. GateError names both figures.

    `first`: advice.
    """
    cosine, norm = figures["vision_cosine"], figures["vision_norm_off"]
    if not (cosine >= recipe.gate.vision_cosine and norm <= recipe.gate.vision_norm):
        raise GateError(
            f"{what}: INT8 visual tokens have cosine {cosine:.4f} with FP32 and a norm that is {norm:.2%} off, "
            f"on {figures['images']} held-out images; recipe {recipe.name} asks for {recipe.gate.vision_cosine} and "
            f"{recipe.gate.vision_norm:.2%}. Nothing was written: {first}, [smooth] and "
            "[outliers] in the recipe make activations easier, and more varied tiles give better ranges"
        )


def task_checks(int8: Sequence[Scored], fp32: Sequence[Scored], spec: GateSpec) -> list[Check]:
    """Each metric of each task; `int8` and `fp32` are answers to the same questions in the same order."""
    found, reference = measures(int8), measures(fp32)
    checks = []
    for task, metrics in reference.items():
        for name, other in metrics.items():
            mine, base = found[task][name], other.value()
            ratio = mine.value() / base if base else math.nan
            interval = mine.ratio_interval(other)
            note = f"INT8 {mine.value():.4f}, FP32 {base:.4f}, {len(other.rows)} questions"
            holds: bool | None = ratio >= spec.tasks
            if not base:
                holds = None
            elif _too_rare(other, spec):
                note += f"; FP32 succeeds {other.successes():.0f} times"
                holds = False if _surely_less(mine, other, interval[1], spec.tasks) else None
            checks.append(Check(f"{task}.{name}", ratio, spec.tasks, holds, note, interval))
    return checks


def _too_rare(measure: Measure, spec: GateSpec) -> bool:
    """Whether one success more or less is beyond the bound, for all that many questions were asked."""
    allowed = 1 - spec.tasks
    return measure.successes() * allowed < 1 <= len(measure.rows) * allowed


def _surely_less(mine: Measure, other: Measure, highest: float, bound: float) -> bool:
    """A bootstrap of no successes would be sure of none: there the limit of a Poisson count decides."""
    return highest < bound if mine.successes() else bound * other.successes() > NONE_OF


def verdict(checks: Sequence[Check], spec: GateSpec, waiver: str | None, images: int = 0) -> dict[str, Any]:
    """What stands in the manifest. GateError that lists every check that does not hold, unless waived."""
    failed = [str(check) for check in checks if check.holds is False]
    if failed and waiver is None:
        raise GateError(
            f"INT8 falls behind FP32 in {len(failed)} of {len(checks)} checks: {'; '.join(failed)}. Nothing was "
            "written. `fusar-edge calibrate RECIPE --search` finds the layers to keep out of INT8, `fusar-edge "
            "calibrate --compare FP32 INT8` the layer where they part; --waive REASON builds it all the same, and the "
            "reason stands in its manifest"
        )
    return {
        "holds": not failed and any(check.holds for check in checks),
        "failed": failed,
        "waiver": waiver if failed or not checks else None,
        "images": images,
        "bounds": msgspec.to_builtins(spec),
        "checks": [_record(check) for check in checks],
    }


def _record(check: Check) -> dict[str, Any]:
    return {name: value for name, value in _fields(check) if value not in ("", None) or name == "holds"}


def _fields(check: Check) -> Iterator[tuple[str, Any]]:
    for name, value in vars(check).items():
        if isinstance(value, float):
            yield name, None if math.isnan(value) else round(value, 6)
        elif isinstance(value, tuple):
            yield name, [None if math.isnan(v) else round(v, 4) for v in value]
        else:
            yield name, value
