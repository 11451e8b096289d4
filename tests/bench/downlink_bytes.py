"""Bytes of a record in the downlink against other forms, and time to make a packet. Run by hand:

    python tests/bench/downlink_bytes.py --scenes 12

Simulated scenes are interpreted with the default bundle (about 4 s each on one core) and put into a journal.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import sys
import tempfile
import time
import zlib
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "service" / "onboard"))

from downlink_scenes import SimulatedScene

from fusar_edge.data.simulator import simulate_scene
from fusar_edge.data.simulator.geotiff import write_geotiff
from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.service.journal import Journal
from fusar_edge.service.onboard.downlink import make_packet
from fusar_edge.service.onboard.ground import read_packet
from fusar_edge.service.onboard.packet import decode
from fusar_edge.service.onboard.records import Kind


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--size", type=int, default=1824)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = simulated(folder, asked.scenes, asked.size)
        journal = Journal.open(folder / "journal.sqlite", ())
        for scene in scenes:
            scene.put(journal, now=time.time())
        for budget in (340, 1024, 4096, 65536):
            report(journal, scenes, budget)
        journal.close()


def simulated(folder: Path, count: int, size: int) -> list[SimulatedScene]:
    bundle = open_bundle("default")
    scenes = []
    for seed in range(count):
        path = folder / f"sim-{seed:05d}.tif"
        write_geotiff(path, simulate_scene(seed, size))
        scenes.append(SimulatedScene(path, bundle))
        print(f"{seed + 1}/{count}", end="\r", file=sys.stderr)
    return scenes


def report(journal: Journal, scenes: list[SimulatedScene], budget: int) -> None:
    """All from an empty queue, so that budgets compare."""
    with journal.write() as cursor:
        for table in ("scenes", "records", "packets"):
            cursor.execute(f"DROP TABLE IF EXISTS downlink_{table}")
    start = time.perf_counter()
    made = make_packet(journal, budget)
    seconds = time.perf_counter() - start
    packet = decode(made.data)
    kinds = [record.kind for _, records in packet.groups for record in records]
    print(f"\nbudget {budget}: {len(made.data)} bytes, {made.records} records, {made.left} left, {seconds:.2f} s")
    print("  " + ", ".join(f"{kind.name} {kinds.count(kind)}" for kind in Kind if kind in kinds))
    if made.left:
        return
    full = [feature for scene in scenes for feature in scene.collection["features"]]
    lean = msgspec.json.encode(read_packet(made.data)["features"])
    rows = msgspec.msgpack.encode(packet.groups)
    forms = {
        "GeoJSON of `interpret`, per feature": (len(msgspec.json.encode(full)), len(full)),
        "the same, gzip": (len(gzip.compress(msgspec.json.encode(full), 9)), len(full)),
        "GeoJSON of `downlink-read`": (len(lean), made.records),
        "that of `downlink-read`, gzip": (len(gzip.compress(lean, 9)), made.records),
        "that of `downlink-read`, xz": (len(lzma.compress(lean, preset=9 | lzma.PRESET_EXTREME)), made.records),
        "msgpack of the records": (len(rows), made.records),
        "msgpack, Deflate": (len(zlib.compress(rows, 9)), made.records),
        "packet": (len(made.data), made.records),
    }
    print(f"  features of interpret: {len(full)}")
    for form, (size, count) in forms.items():
        print(f"  {form:40} {size:9} bytes  {size / count:8.1f} a record")


if __name__ == "__main__":
    main()
