"""`fusar-edge serve`: everything of one process, started in order and stopped in the opposite one.

journal -> intake -> engines -> sinks -> watch folder -> HTTP
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fusar_edge.errors import InputError, MissingExtraError
from fusar_edge.service.lock import only_service
from fusar_edge.service.settings import ServiceSettings

if TYPE_CHECKING:
    from fusar_edge.runtime.bundle import Bundle
    from fusar_edge.service.journal import Journal
    from fusar_edge.service.parts import ServiceParts
    from fusar_edge.service.pipeline import Governor
    from fusar_edge.service.sinks.sink import Sink

log = logging.getLogger(__name__)

Say = Callable[[str], None]
PACKAGES = ("fastapi", "httpx", "paho", "prometheus_client", "scipy", "uvicorn")
HOUSEKEEPING_S = 3600.0
STOPS = (signal.SIGINT, signal.SIGTERM)


def run(settings: ServiceSettings, say: Say) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM; returns what the command prints as its JSON line.

    InputError before anything is started where the settings cannot be met; a second service on the same data folder
    is one of those.
    """
    require_extra()
    configure_logging()
    with only_service(settings.data_dir), stopped_by_signals() as stopping, ExitStack() as stack:
        parts = open_parts(settings, stack)
        require_tokens(settings, parts)
        with listening(settings) as listener:
            start_parts(parts, stack)
            if not stopping.is_set():
                serve_http(parts, listener, say)
        say("stopping: tiles in work are finished, the rest goes on at the next start")
        counts = parts.journal.counts()
    return {"data_dir": str(settings.data_dir), "bundle": parts.bundle.sha256, **counts}


def open_parts(settings: ServiceSettings, stack: ExitStack) -> ServiceParts:
    """Everything that needs no thread yet; `stack` closes it."""
    from fusar_edge.runtime.bundle import open_bundle
    from fusar_edge.runtime.interpreter import ordered_tasks
    from fusar_edge.service.http.metrics import Metrics
    from fusar_edge.service.intake.intake import Intake
    from fusar_edge.service.journal import Journal
    from fusar_edge.service.parts import ServiceParts
    from fusar_edge.service.pipeline import Pipeline

    ordered_tasks(settings.model.tasks, None)
    bundle = open_bundle(settings.bundle)
    metrics = Metrics()
    journal = Journal.open(settings.data_dir / "journal.sqlite", sink_kinds(settings))
    stack.callback(journal.close)
    pipeline = Pipeline(bundle, journal, settings.model, settings.triage, governor(settings), metrics.observe)
    intake = Intake(settings, bundle, journal, pipeline.wake)
    stack.callback(intake.close)
    intake.sweep()
    return ServiceParts(settings, bundle, journal, pipeline, intake, metrics)


def start_parts(parts: ServiceParts, stack: ExitStack) -> None:
    """Engines, sinks, watch folder, housekeeping; `stack` stops them, the last first."""
    from fusar_edge.service.intake.watch import Watcher
    from fusar_edge.service.sinks.courier import Courier

    parts.pipeline.start()
    for sink in sinks(parts.settings, parts.journal, parts.bundle):
        courier = Courier(parts.journal, sink)
        parts.couriers.append(courier)
        courier.start()
        stack.callback(courier.stop)
    stack.callback(parts.pipeline.stop)  # before the sinks: what it finishes may still leave
    housekeeper = Housekeeper(parts)
    housekeeper.start()
    stack.callback(housekeeper.stop)
    if parts.settings.watch.folder is not None:
        parts.watcher = Watcher(parts.intake, parts.journal, parts.settings.watch)
        parts.watcher.start()
        stack.callback(parts.watcher.stop)


def serve_http(parts: ServiceParts, listener: socket.socket, say: Say) -> None:
    """The HTTP server, until a signal ends it."""
    from fusar_edge.service.http.app import make_app
    from fusar_edge.service.http.server import Server

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    settings = parts.settings
    say(f"http://{shown}:{port}{'/' if settings.profile == 'ground' else '/v1/status'}  bundle {settings.bundle}")
    say(f"watching {settings.watch.folder}" if settings.watch.folder else "no watch folder: uploads and STAC alone")
    Server(make_app(parts), settings.http).run(sockets=[listener])


class Housekeeper(threading.Thread):
    """Forgets what is old, once an hour: events, and scenes done long ago with their files; results stay."""

    def __init__(self, parts: ServiceParts) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._parts = parts
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(HOUSEKEEPING_S):
            try:
                self.tidy()
            except Exception:
                log.exception("housekeeping")

    def tidy(self) -> list[str]:
        """Ids of the scenes that were forgotten."""
        limits, data_dir = self._parts.settings.limits, self._parts.settings.data_dir
        if self._parts.settings.profile == "onboard":
            from fusar_edge.service.onboard.backlog import gather

            gather(self._parts.journal)  # what is forgotten here must be in the queue for the ground before
        gone = self._parts.journal.prune(limits.keep_events, limits.keep_days)
        self._parts.intake.drop_unknown()
        for scene_id in gone:
            (data_dir / "previews" / f"{scene_id}.tif").unlink(missing_ok=True)
        self._parts.journal.checkpoint()
        return gone

    def stop(self) -> None:
        self._stopping.set()
        self.join(30.0)


def sink_kinds(settings: ServiceSettings) -> dict[str, Any]:
    """Name -> kinds of messages, of the sinks that are on."""
    from fusar_edge.service.sinks.files import FilesSink
    from fusar_edge.service.sinks.mqtt import MqttSink
    from fusar_edge.service.sinks.webhook import WebhookSink

    kinds: dict[str, Any] = {FilesSink.name: FilesSink.kinds}
    if settings.mqtt.host:
        kinds[MqttSink.name] = MqttSink.kinds
    if settings.webhook.url:
        kinds[WebhookSink.name] = WebhookSink.kinds
    return kinds


def sinks(settings: ServiceSettings, journal: Journal, bundle: Bundle) -> list[Sink]:
    from fusar_edge.service.results import collection_from_journal
    from fusar_edge.service.sinks.files import FilesSink
    from fusar_edge.service.sinks.mqtt import MqttSink
    from fusar_edge.service.sinks.webhook import WebhookSink

    made: list[Sink] = [
        FilesSink(settings.data_dir / "results", journal, lambda row: collection_from_journal(journal, row, bundle))
    ]
    if settings.mqtt.host:
        made.append(MqttSink(settings.mqtt))
    if settings.webhook.url:
        made.append(WebhookSink(settings.webhook))
    return made


def governor(settings: ServiceSettings) -> Governor | None:
    """The ladder on board; nothing on the ground."""
    if settings.profile == "ground":
        return None
    from fusar_edge.service.onboard.ladder import ladder_from_settings

    return ladder_from_settings(settings)


def require_extra() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"serve needs {', '.join(missing)}: pip install 'fusar-edge[service]'")


def require_tokens(settings: ServiceSettings, parts: ServiceParts) -> None:
    """InputError where others may connect and nobody could be let in."""
    from fusar_edge.service.http.auth import is_loopback

    open_to_others = not is_loopback(settings.http.host)
    if (open_to_others or settings.http.require_token) and not parts.tokens.list():
        why = f"{settings.http.host} can be reached by others" if open_to_others else "http.require_token is set"
        raise InputError(
            f"{why}, and there is no token yet: make one with `fusar-edge token create NAME --scope admin --data-dir "
            f"{settings.data_dir}`, or listen to 127.0.0.1"
        )


@contextlib.contextmanager
def listening(settings: ServiceSettings) -> Iterator[socket.socket]:
    """Bound before anything long is done; connections wait until the server accepts them."""
    http = settings.http
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise InputError(f"{http.host}: not an address of this machine ({problem.strerror}); give --host") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as problem:
            raise InputError(
                f"{http.host}:{http.port}: cannot listen there ({problem.strerror}); give another --port, or 0"
            ) from None
        yield listener


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event; uvicorn, while it runs, takes them itself and hands them on at its end."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in STOPS}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def configure_logging() -> None:
    """One line each on stderr, UTC."""
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("fusar_edge").setLevel(logging.INFO)
