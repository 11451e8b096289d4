"""Settings of `fusar-edge serve`: one TOML, every key optional; options of the command line win over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fusar_edge.errors import RecipeError

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ModelSettings(_Settings, frozen=True):
    """[model]: what is asked of every tile, unless a scene asks for something else."""

    tasks: tuple[str, ...] = ("caption", "count", "detect")
    label: str = "ship"
    anchors: Path | None = None
    """AlphaEarth anchor table; none: plain Qwen2.5-VL."""
    workers: Annotated[int, Meta(ge=0)] = 0
    """Engines side by side; 0: one for a GPU, else one for every processor, as far as memory allows."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Processor threads of each worker; 0: the processors divided among the workers."""
    vision_batch: Annotated[int, Meta(ge=1, le=8)] = 4
    """Tiles that vision takes at once where so many are ready."""
    ready_tiles: Positive = 16
    """Tiles read ahead of the engines: bounds the memory."""


class TriageSettings(_Settings, frozen=True):
    """[triage]: which tiles are not worth a question."""

    mode: Literal["cfar", "nodata", "off"] = "cfar"
    """cfar: leave out empty sea; nodata: only tiles without a valid pixel; off: ask about every tile with one."""


class WatchSettings(_Settings, frozen=True):
    """[watch]: a folder that scenes are dropped into."""

    folder: Path | None = None
    stable_s: Seconds = 2.0
    """A file whose size and time did not change for so long is complete."""
    poll_s: Seconds = 0.5
    patterns: tuple[str, ...] = ("*.tif", "*.tiff")


class LimitSettings(_Settings, frozen=True):
    """[limits]: what is refused. Uploads and the watch folder alike."""

    upload_mib: Positive = 4096
    pixels: Positive = 2_000_000_000
    decompression_ratio: Positive = 200
    """Uncompressed bytes over the file's, at most."""
    queued_scenes: Positive = 64
    """Scenes accepted and not finished; beyond it HTTP says 429 and the watch folder waits."""
    outbox_messages: Positive = 200_000
    """Messages that sinks have not taken yet; beyond it no new scene is accepted."""
    free_disk_mib: Positive = 256
    """Below it no new scene is accepted."""
    keep_days: Annotated[float, Meta(gt=0)] = 30.0
    """Scenes done so long ago are forgotten, with their uploads; results stay in their folder."""
    keep_events: Positive = 100_000
    """What a client that comes back can still be told."""
    event_streams: Positive = 64
    """Clients of /v1/events at once."""


class HttpSettings(_Settings, frozen=True):
    """[http]"""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8077
    names: tuple[str, ...] = ()
    """Host names, beside loopback's and `host`, that requests may be addressed to."""
    require_token: bool = False
    """Also on loopback. Elsewhere tokens are always required."""


class StacSettings(_Settings, frozen=True):
    """[stac]: where items and their assets may come from. Empty: from nowhere."""

    hosts: tuple[str, ...] = ()
    """Names of https hosts, exactly; "name:port" where it is not 443. A loopback host may use http."""
    roots: tuple[Path, ...] = ()
    """Folders that local items and assets may lie in."""


class MqttSettings(_Settings, frozen=True):
    """[mqtt]: off without a host."""

    host: str = ""
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    topic: str = "fusar-edge"
    """Messages go to TOPIC/scenes/ID/tiles/INDEX and TOPIC/scenes/ID."""
    client_id: str = "fusar-edge"
    settle_s: Annotated[float, Meta(ge=0)] = 10.0
    """What the broker acknowledged within so long before it was lost is published again; 0: nothing is."""
    username: str = ""
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None


class WebhookSettings(_Settings, frozen=True):
    """[webhook]: off without a URL."""

    url: str = ""
    secret_file: Path | None = None
    """Its content signs each body: header X-Fusar-Edge-Signature, HMAC-SHA256."""
    timeout_s: Seconds = 10.0


class OnboardSettings(_Settings, frozen=True):
    """[onboard]: profile `onboard` alone."""

    readings: Path | None = None
    """JSON lines of power and temperature to replay; none: read from the board."""
    warm_c: float = 75.0
    hot_c: float = 85.0
    critical_c: float = 95.0
    power_w: Annotated[float, Meta(gt=0)] | None = None
    """Budget; none: temperature alone decides."""


class ServiceSettings(_Settings, frozen=True):
    """The whole file."""

    bundle: str = "default"
    data_dir: Path = Path("fusar-edge-data")
    """Journal, uploads, results. One service at a time."""
    profile: Literal["ground", "onboard"] = "ground"
    model: ModelSettings = ModelSettings()
    triage: TriageSettings = TriageSettings()
    watch: WatchSettings = WatchSettings()
    limits: LimitSettings = LimitSettings()
    http: HttpSettings = HttpSettings()
    stac: StacSettings = StacSettings()
    mqtt: MqttSettings = MqttSettings()
    webhook: WebhookSettings = WebhookSettings()
    onboard: OnboardSettings = OnboardSettings()


def merged_settings(path: Path | None, given: Mapping[str, Any], **tables: Mapping[str, Any]) -> ServiceSettings:
    """The file, or the defaults, with what was `given` on the command line (None: not given) in its place."""
    settings = read_settings(path) if path else ServiceSettings()
    changes = {name: value for name, value in given.items() if value is not None}
    for name, table in tables.items():
        chosen = {key: value for key, value in table.items() if value is not None}
        changes[name] = msgspec.structs.replace(getattr(settings, name), **chosen)
    return msgspec.structs.replace(settings, **changes)


def read_settings(path: Path) -> ServiceSettings:
    """RecipeError, with the file and the key, where it cannot be read."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ServiceSettings, dec_hook=_path)
    except OSError as problem:
        raise RecipeError(f"{path}: cannot be read ({problem.strerror}); give a service TOML") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path}: {problem}; docs/service.md lists every key") from None


def _path(kind: type, value: Any) -> Any:
    """TOML has no paths; relative ones count from the working directory."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected a path, got {value!r}")
