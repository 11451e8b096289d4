"""Runs a function over many pieces of work: in threads here, or on a Dask cluster.

Dask is the project's one engine for work larger than a machine: it speaks `concurrent.futures`, so a cluster takes the
same path through the code as threads do; it is pure Python, so it installs wherever the base install does; and there
are launchers for the schedulers of clusters (SLURM, PBS, Kubernetes). Ray is a large binary wheel for some platforms,
and its tasks would need a second path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from fusar_edge.errors import InputError, MissingExtraError

Work = TypeVar("Work")
Done = TypeVar("Done")

MOST_JOBS = 3
"""Threads unless asked for more: what stays below 1 GiB (docs/log.md)."""
IN_FLIGHT = 3
"""Pieces handed out per worker: enough to keep it busy, few enough that a million of them need no memory."""


@contextmanager
def open_workers(jobs: int | None = None, cluster: str | None = None) -> Iterator[tuple[Executor, int]]:
    """An executor and how many pieces it works on at once.

    `cluster`: `tcp://HOST:PORT` of a Dask scheduler, or `local:N` for N processes on this machine; None: `jobs` threads
    (None: one per core, at most MOST_JOBS). Work for a cluster is pickled, and its paths must mean the same everywhere.
    """
    if cluster is None:
        count = jobs or min(MOST_JOBS, os.cpu_count() or 1)
        with ThreadPoolExecutor(count, thread_name_prefix="anchors") as pool:
            yield pool, count
        return
    with _dask_client(cluster) as client:
        count = sum(client.nthreads().values())
        if not count:
            raise InputError(f"--cluster {cluster}: the scheduler has no workers; start some with `dask worker`")
        yield client.get_executor(retries=2, pure=False), count


def done_in_any_order(
    executor: Executor, at_once: int, function: Callable[[Work], Done], works: Iterable[Work]
) -> Iterator[Done]:
    """Results as they come. After an error nothing more is begun, what runs is still yielded, then the error is raised;
    leaving early cancels what has not begun and waits for the rest."""
    queue = iter(works)
    running: set[Future[Done]] = set()
    problem: BaseException | None = None
    try:
        while True:
            while problem is None and len(running) < at_once * IN_FLIGHT and (work := next(queue, None)) is not None:
                running.add(executor.submit(function, work))
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if future.cancelled():
                    continue
                if future.exception() is None:
                    yield future.result()
                elif problem is None:
                    problem = future.exception()
                    for waiting in running:
                        waiting.cancel()
        if problem is not None:
            raise problem
    finally:
        for future in running:
            future.cancel()
        wait(running)


@contextmanager
def _dask_client(cluster: str) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingExtraError(
            "--cluster needs Dask, which is not installed: pip install 'fusar-edge[tables]'"
        ) from None
    if cluster.startswith("local:"):
        number = cluster.removeprefix("local:")
        if not number.isdigit() or not int(number):
            raise InputError(f"--cluster {cluster}: give local:N with N processes of 1 or more")
        with (
            LocalCluster(n_workers=int(number), threads_per_worker=1, dashboard_address=None) as local,
            Client(local) as client,
        ):
            yield client
        return
    try:
        client = Client(cluster, timeout="10s")
    except (OSError, ValueError) as problem:
        raise InputError(
            f"--cluster {cluster}: no Dask scheduler answers there ({problem}); give tcp://HOST:PORT or local:N"
        ) from None
    with client:
        yield client
