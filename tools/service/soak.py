"""Hours of a ground station in minutes: scenes come faster than they can be done, the broker stalls and dies, the
service is killed (SIGKILL), and at the end everything that was accepted must be there, once.

    python tools/service/soak.py OUT [--minutes 30] [--kill-every 150] [--json R.json]

Needs the extra `service` and mosquitto. Scenes are simulated, half of them dropped into the watch folder and half
uploaded. The second half of the time passes without kills: the memory's slope is taken in the last third. Exit 1 where
something was lost, came twice, was refused without a reason, or where scenes did not come fast enough for a refusal.

Counted as lost: a scene that was accepted (a file in the watch folder, an upload answered 202) and is not done; a tile
or a task without its record in result.geojson; a record that no MQTT message brought. Twice: a record twice in a
result, or two MQTT messages of one key that differ. A message that came again, equal, is what QoS 1 allows; they are
counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import paho.mqtt.client as mqtt
import rasterio
from rasterio.transform import Affine

TASKS = ("caption", "count", "detect")
PAUSE_S = 0.02
"""Between two scenes, beside the making of one: faster than one engine can do them. A run without a single refusal is
no soak, and fails."""
SIDE = (504, 900)
"""Rows and columns of a scene: two tiles, and what they share."""
SETTINGS = """
[model]
tasks = ["caption", "count", "detect"]
workers = 1
[watch]
folder = "{out}/watch"
stable_s = 0.5
[limits]
queued_scenes = 24
[http]
port = {port}
[mqtt]
host = "127.0.0.1"
port = {broker}
topic = "soak"
"""
BROKER = """{user}
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {out}/broker/
autosave_on_changes true
autosave_interval 1
max_queued_messages 0
max_inflight_messages 0
"""


def show(text: str) -> None:
    """Where it is, for a person at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Scenes:
    """A new simulated scene each time; every third is empty sea, for triage."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def write(self, path: Path) -> None:
        rng = self._rng
        power = 0.012 * rng.standard_gamma(4.0, SIDE, np.float32) / 4
        if rng.random() < 0.67:
            for _ in range(int(rng.integers(1, 5))):
                row, col = rng.integers(20, SIDE[0] - 40), rng.integers(20, SIDE[1] - 60)
                power[row : row + 5, col : col + 22] += 0.8 * rng.standard_gamma(2.0, (5, 22), np.float32)
        grey = np.clip(np.sqrt(power) * 255, 0, 255).astype(np.uint8)
        place = Affine(10, 0, 400_000 + 10 * int(rng.integers(20_000)), 0, -10, 3_700_000)
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32611", "transform": place}
        with rasterio.open(path, "w", height=SIDE[0], width=SIDE[1], tiled=True, **profile) as file:
            file.write(grey, 1)
            file.update_tags(SIMULATED="YES")


class Process:
    """A program that is started again after it was killed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.kills = 0
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1
        self.start()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


class Consumer:
    """Who listens to MQTT: a session that the broker keeps, key -> digests of the payloads."""

    def __init__(self, port: int) -> None:
        self.seen: dict[str, Counter[str]] = {}
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="soak", clean_session=False)
        self._client.on_connect = lambda client, *_: client.subscribe("soak/#", qos=1)
        self._client.on_message = self._take
        self._client.reconnect_delay_set(1, 2)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect_async("127.0.0.1", port, keepalive=10)
        self._client.loop_start()
        if not self._subscribed.wait(30):
            raise SystemExit("the broker did not take a subscriber: see broker.log")

    def _take(self, client: Any, userdata: Any, message: mqtt.MQTTMessage) -> None:
        key = json.loads(message.payload)["key"]
        self.seen.setdefault(key, Counter())[hashlib.sha256(message.payload).hexdigest()] += 1

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Feeder(threading.Thread):
    """Gives scenes until told to stop, and notes every answer."""

    def __init__(self, out: Path, port: int, pause_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.out, self.pause_s = out, pause_s
        self.url = f"http://127.0.0.1:{port}/v1/scenes"
        self.scenes = Scenes(seed)
        self.stopping = threading.Event()
        self.watched: list[str] = []
        self.uploaded: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.silent_refusals: list[str] = []

    def run(self) -> None:
        number, full = 0, False
        while not self.stopping.wait(self.pause_s):
            number += 1
            name = f"scene-{number:05d}.tif"
            path = self.out / "made" / name
            self.scenes.write(path)
            if number % 20 == 1:
                full = len(unwatched(self.out)) > 40  # files wait as long as they must; here an end has to come
            if number % 2 and not full:
                path.rename(self.out / "watch" / name)
                self.watched.append(name)
            else:
                self.upload(path)
                path.unlink()

    def upload(self, path: Path) -> None:
        """Again while the service is away, as a client would; a refusal with its reason is an answer."""
        while not self.stopping.is_set():
            try:
                answer = httpx.post(self.url, files={"file": (path.name, path.read_bytes(), "image/tiff")}, timeout=30)
            except httpx.TransportError:
                self.answers["no connection"] += 1
                self.stopping.wait(0.5)
                continue
            self.answers[str(answer.status_code)] += 1
            if answer.status_code in (200, 202):
                self.uploaded.add(answer.json()["id"])
            elif answer.status_code == 429:
                if "retry-after" not in answer.headers or not answer.json().get("detail"):
                    self.silent_refusals.append(answer.text[:200])
            else:
                self.silent_refusals.append(f"{answer.status_code}: {answer.text[:200]}")
            return


def soak(out: Path, minutes: float, kill_every_s: float, seed: int) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    for name in ("made", "watch", "broker"):
        (out / name).mkdir(parents=True)
    port, broker_port = free_port(), free_port()
    (out / "service.toml").write_text(SETTINGS.format(out=out.absolute(), port=port, broker=broker_port))
    # As root mosquitto becomes another user, who may not write there; what it does not keep it would lose.
    user = "user root" if os.geteuid() == 0 else ""
    (out / "broker.conf").write_text(BROKER.format(out=out.absolute(), port=broker_port, user=user))
    broker = Process(["mosquitto", "-c", str(out / "broker.conf")], out / "broker.log")
    consumer = Consumer(broker_port)
    command = [sys.executable, "-m", "fusar_edge", "serve", "--settings", str(out / "service.toml")]
    service = Process([*command, "--data-dir", str(out / "data")], out / "service.log")
    feeder = Feeder(out, port, PAUSE_S, seed)
    feeder.start()
    memory = trouble(service, broker, minutes * 60, kill_every_s, random.Random(seed))
    feeder.stopping.set()
    feeder.join()
    drained_s = drain(f"http://127.0.0.1:{port}/v1/status", out)
    time.sleep(3)  # the consumer's last messages
    code = service.stop()
    consumer.stop()
    broker.stop()
    return report(out, feeder, consumer, service, broker, memory, drained_s, code)


def trouble(service: Process, broker: Process, seconds: float, kill_every_s: float, rng: random.Random) -> list[Any]:
    """Kill the service now and then; stall the broker, kill it. Returns (s, MiB) of the last, quiet third."""
    start = time.monotonic()
    next_kill, next_stall, memory = kill_every_s, kill_every_s / 3, []
    while (at := time.monotonic() - start) < seconds:
        show(f"{at:6.0f} / {seconds:.0f} s, {service.kills} kills")
        time.sleep(1.0)
        if at > seconds * 2 / 3:
            memory.append((at, resident_mib(service.process.pid)))
        elif at > next_kill and at < seconds / 2:
            service.kill()
            next_kill = at + kill_every_s * rng.uniform(0.6, 1.4)
        if at > next_stall:
            if rng.random() < 0.3:
                broker.kill()
            else:
                broker.process.send_signal(signal.SIGSTOP)
                time.sleep(rng.uniform(2, 15))
                broker.process.send_signal(signal.SIGCONT)
            next_stall = at + kill_every_s * rng.uniform(0.2, 0.6)
    return memory


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def drain(url: str, out: Path, most_s: float = 900.0) -> float:
    """Wait until nothing is left to do."""
    start = time.monotonic()
    while time.monotonic() - start < most_s:
        time.sleep(1.0)
        try:
            counts = httpx.get(url, timeout=30).json()["counts"]
        except httpx.TransportError:
            continue
        left = counts["scenes"]["queued"] + counts["scenes"]["running"] + sum(counts["outbox"].values())
        known = sum(counts["scenes"].values())
        show(f"{left} scenes and messages are left, {known} scenes known")
        if not left and not unwatched(out):
            return time.monotonic() - start
    raise SystemExit(f"not drained after {most_s:.0f} s: {left} left")


def unwatched(out: Path) -> set[str]:
    """Files of the watch folder that the journal does not know."""
    return {path.name for path in (out / "watch").iterdir()} - {row["name"] for row in rows(out)}


def rows(out: Path) -> Iterator[dict[str, Any]]:
    path = out / "data" / "journal.sqlite"
    if not path.is_file():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        yield from map(dict, connection.execute("SELECT id, name, status, reason FROM scenes").fetchall())


def report(
    out: Path,
    feeder: Feeder,
    consumer: Consumer,
    service: Process,
    broker: Process,
    memory: list[Any],
    drained_s: float,
    code: int,
) -> dict[str, Any]:
    """Everything that was accepted, against what came out."""
    found = {row["id"]: row for row in rows(out)}
    names = {row["name"] for row in found.values()}
    lost = [f"{name}: not in the journal" for name in feeder.watched if name not in names]
    lost += [f"upload {scene}: not in the journal" for scene in feeder.uploaded if scene not in found]
    lost += [f"{row['name']}: {row['status']} ({row['reason']})" for row in found.values() if row["status"] != "done"]
    twice: list[str] = []
    records = 0
    for scene in found:
        path = out / "data" / "results" / scene / "result.geojson"
        if not path.is_file():
            lost.append(f"{scene}: no result.geojson")
            continue
        result = json.loads(path.read_text())
        answers = [f["properties"] for f in result["features"] if f["properties"]["kind"] == "answer"]
        keys = Counter((a["tile"], a["task"]) for a in answers)
        twice += [f"{scene} tile {tile} {task}" for (tile, task), n in keys.items() if n > 1]
        answered = result["counts"]["tiles"] - result["counts"]["tiles_skipped"]
        if len(keys) != answered * len(TASKS):
            lost.append(f"{scene}: {len(keys)} records of {answered} tiles")
        records += len(answers)
        wanted = {scene, *(f"{scene}/{tile}" for tile, _ in keys)}
        lost += [f"no message {key}" for key in wanted - consumer.seen.keys()]
    twice += [f"message {key}: {len(found)} different" for key, found in consumer.seen.items() if len(found) > 1]
    again = sum(sum(payloads.values()) - len(payloads) for payloads in consumer.seen.values())
    times, mib = np.array(memory).T if memory else (np.zeros(2), np.zeros(2))
    return {
        "scenes": len(found),
        "watched": len(feeder.watched),
        "uploads_accepted": len(feeder.uploaded),
        "upload_answers": dict(feeder.answers),
        "records": records,
        "messages": len(consumer.seen),
        "messages_again": again,
        "service_kills": service.kills,
        "broker_kills": broker.kills,
        "drained_s": round(drained_s, 1),
        "exit_code": code,
        "memory_mib": [round(float(mib.min()), 1), round(float(mib.max()), 1)],
        "memory_mib_per_minute": round(float(np.polyfit(times, mib, 1)[0]) * 60, 3) if len(memory) > 10 else None,
        "lost": lost,
        "twice": twice,
        "silent_refusals": feeder.silent_refusals,
        "ok": bool(feeder.answers["429"]) and not (lost or twice or feeder.silent_refusals or code),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=150.0, help="seconds, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if shutil.which("mosquitto") is None:
        raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
    result = soak(given.out, given.minutes, given.kill_every, given.seed)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))
    print(json.dumps(result))
    raise SystemExit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
