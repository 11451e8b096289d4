"""Runs in a process of its own: our code over the bindings of one TensorRT. Questions on stdin, answers on stdout."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import tensorrt_bindings

from fusar_edge.engines.monitor import attached_monitor
from fusar_edge.errors import DeviceError
from fusar_edge.runtime import trt_api


def exists(trt: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not hasattr(trt, part):
            return False
        trt = getattr(trt, part)
    return True


def refusal(make: Any, *arguments: Any) -> str:
    try:
        trt_api.constructed(make, "a thing", *arguments)
    except DeviceError as error:
        return str(error)
    return ""


def logged(trt: Any) -> dict[str, list[str]]:
    listener = trt_api.Listener(trt)
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        listener.log(getattr(trt.ILogger.Severity, name), name)
    return {"said": listener.said, "errors": listener.errors}


def monitored(trt: Any) -> list[Any]:
    """A made-up build through the monitor that the builder would call."""
    shown: list[Any] = []
    config = SimpleNamespace(progress_monitor=None)
    attached_monitor(trt, config, "vision", lambda *step: shown.append(step))
    bridge = config.progress_monitor
    if bridge is not None:
        bridge.phase_start("build", None, 2)
        bridge.phase_start("tactics", "build", 5)
        assert bridge.step_complete("tactics", 0) is True
        bridge.phase_finish("tactics")
        bridge.step_complete("build", 0)
    return shown


def main() -> None:
    questions = json.load(sys.stdin)
    sys.modules["tensorrt"] = tensorrt_bindings
    trt = trt_api.open_tensorrt(need_driver=False)
    answers = {
        "version": trt_api.version_of(trt),
        "exist": {name: exists(trt, name) for name in questions["names"]},
        "network_flags": trt_api.network_flags(trt),
        "strongly_typed": trt_api.is_strongly_typed(trt),
        "builder": refusal(trt.Builder, trt_api.Listener(trt)),
        "runtime": refusal(trt.Runtime, trt_api.Listener(trt)),
        "logged": logged(trt),
        "monitored": monitored(trt),
    }
    json.dump(answers, sys.stdout)


main()
