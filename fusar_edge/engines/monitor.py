"""TensorRT's progress (10 and later) as our progress callback; Ctrl-C stops a build at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]


class Monitor:
    """Counts the steps of the phases that TensorRT goes through. A phase inside another is a step of a step.

    Its methods are called from C++, which no Python exception may cross; so are the logger's. Ctrl-C and errors of the
    callback are therefore noted, stop the build at its next step, and are raised then.
    """

    def __init__(self, label: str, progress: Progress) -> None:
        self.label, self.progress = label, progress
        self.interrupted = False
        self.failure: Exception | None = None
        """What the progress callback raised."""
        self._depth: dict[str, int] = {}
        self._total = self._done = 0

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What happens in this block is raised at its end. Ctrl-C is met in the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, self._interrupt)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, before)
        else:
            yield
        if self.interrupted:
            raise KeyboardInterrupt
        if self.failure is not None:
            raise self.failure

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        depth = self._depth[phase_name] = self._depth.get(parent_phase or "", -1) + 1
        if depth == 0:
            self._total += num_steps
        self._show(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """False stops the build."""
        if self._depth.get(phase_name) == 0:
            self._done += 1
        self._show(phase_name)
        return not self.interrupted and self.failure is None

    def phase_finish(self, phase_name: str) -> None:
        self._depth.pop(phase_name, None)

    def _show(self, phase: str) -> None:
        if self.failure is not None:
            return
        try:
            self.progress(min(self._done, self._total), self._total, f"{self.label}: {phase}")
        except Exception as problem:  # whatever it is, such as a closed terminal, C++ must not see it
            self.failure = problem


def attached_monitor(trt: Any, config: Any, label: str, progress: Progress | None) -> Monitor:
    """A monitor of the build that `config` is for. A version without monitors shows one step."""
    monitor = Monitor(label, progress or (lambda done, total, label: None))
    if not hasattr(trt, "IProgressMonitor"):
        monitor.progress(0, 1, label)
        return monitor

    class Bridge(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.phase_finish(phase_name)

    config.progress_monitor = Bridge()
    return monitor
