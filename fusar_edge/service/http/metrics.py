"""Figures of the service: Prometheus for machines, percentiles of the last ten minutes for the page."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.responses import Response

from fusar_edge.errors import EdgeError

if TYPE_CHECKING:
    from fusar_edge.service.parts import ServiceParts

WINDOW_S = 600.0
KEPT = 4096
"""Observations of a stage that percentiles are taken of, at most: the youngest."""
STAGE_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PREFIX = "fusar_edge"


class _Recent:
    """The youngest observations of a stage; its memory does not grow."""

    def __init__(self) -> None:
        self._times = np.full((KEPT, 2), -np.inf)
        """(when, ms)."""
        self._count = 0

    def note(self, at: float, ms: float) -> None:
        self._times[self._count % KEPT] = at, ms
        self._count += 1

    def since(self, at: float) -> npt.NDArray[np.float64]:
        return self._times[self._times[:, 0] >= at, 1]


class Metrics:
    """Own registry, so that two services in one process (tests) do not meet. Threads may call all of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._clock = clock
        self._started_at = clock()
        self._lock = threading.Lock()
        self._recent: dict[str, _Recent] = {}
        self._stages = Histogram(
            f"{PREFIX}_stage_seconds", "Time of one step of a tile", ["stage"], buckets=STAGE_S, registry=self.registry
        )
        self._requests = Counter(
            f"{PREFIX}_http_requests", "Answers by route", ["method", "route", "status"], registry=self.registry
        )
        self._response = Histogram(
            f"{PREFIX}_http_response_start_seconds",
            "Time from a request to the first byte of its answer",
            ["route"],
            buckets=STAGE_S,
            registry=self.registry,
        )

    def observe(self, stage: str, ms: float) -> None:
        """Note what one step took; what the pipeline is given."""
        self._stages.labels(stage).observe(ms / 1e3)
        with self._lock:
            self._recent.setdefault(stage, _Recent()).note(self._clock(), ms)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template: a path as given would make a series of every scene."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._response.labels(route).observe(seconds)

    def uptime_s(self) -> float:
        return self._clock() - self._started_at

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Stage -> count, p50, p95, p99 and max in ms, over the last ten minutes; a stage without any is left out."""
        oldest = self._clock() - WINDOW_S
        with self._lock:
            recent = {stage: times.since(oldest) for stage, times in self._recent.items()}
        found = {}
        for stage, values in recent.items():
            if len(values):
                p50, p95, p99 = (round(float(v), 3) for v in np.percentile(values, (50, 95, 99)))
                found[stage] = {
                    "count": len(values),
                    "p50": p50,
                    "p95": p95,
                    "p99": p99,
                    "max": round(float(values.max()), 3),
                }
        return found


class _State:
    """What the journal and the pipeline say at the moment of a scrape."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts

    def collect(self) -> Iterable[Metric]:
        yield from self._pipeline()
        yield from self._ways()
        try:
            counts = self._parts.journal.counts()
        except EdgeError:
            yield _gauge("journal_up", "The journal answers", 0)
            return
        yield _gauge("journal_up", "The journal answers", 1)
        yield _family(GaugeMetricFamily, "scenes", "Scenes by state", "status", counts["scenes"])
        yield _family(CounterMetricFamily, "tiles", "Tiles answered, or left out and why", "outcome", counts["tiles"])
        yield _family(GaugeMetricFamily, "outbox_messages", "What a sink has not taken yet", "sink", counts["outbox"])
        yield _family(GaugeMetricFamily, "dead_messages", "Refused by a sink", "sink", counts["dead_messages"])
        yield CounterMetricFamily(f"{PREFIX}_refused", "Files of the watch folder refused", counts["refused"])
        yield CounterMetricFamily(f"{PREFIX}_events", "Events noted", counts["events"])

    def _ways(self) -> Iterator[Metric]:
        """In by the watch folder, out by the sinks."""
        sinks = [courier.status() for courier in self._parts.couriers]
        if sinks:
            up = {sink.name: int(not sink.failures) for sink in sinks}
            yield _family(GaugeMetricFamily, "sink_up", "The sink has taken the last batch", "sink", up)
        if (watcher := self._parts.watcher) is not None:
            yield _gauge("watch_up", "The watch folder is read and does not wait", int(not watcher.problem))

    def _pipeline(self) -> Iterator[Metric]:
        status = self._parts.pipeline.status()
        yield _gauge("engine_up", "The engines run", int(status.running and not status.problem))
        yield _gauge("ready_tiles", "Tiles read and waiting for an engine", status.ready_tiles)
        yield _gauge("working_tiles", "Tiles that engines have in work", len(status.working))
        yield _gauge("tiles_per_second", "Over the last minute", status.tiles_per_s)
        yield _gauge("paused", "The power ladder has stopped the engines", int(status.limits.paused))
        yield _gauge("stride", "One tile in so many is asked about", status.limits.stride)
        try:
            free = shutil.disk_usage(self._parts.settings.data_dir).free
        except OSError:
            return
        yield _gauge("disk_free_bytes", "Free where the journal lies", free)


def router(parts: ServiceParts) -> APIRouter:
    """GET /metrics."""
    routes = APIRouter(tags=["operation"])
    parts.metrics.registry.register(_State(parts))

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text format"}},
    )
    def metrics() -> Response:
        """Prometheus: stages, requests, queue, sinks, disk, process."""
        return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", about, value)


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, about: str, label: str, counts: dict[str, int]
) -> Metric:
    family = kind(f"{PREFIX}_{name}", about, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
