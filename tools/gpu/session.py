"""One measured session on a GPU machine: its parts in processes of their own, within the time of one call.

    python tools/gpu/session.py --store STORE --out OUT [--parts device graphs engines huggingface] [--limit-s 530]

STORE: what unpack.sh filled (STORE/session, STORE/tensorrt); graphs, plans and timings stay in STORE/work, so that a
later call goes on where one was stopped. OUT receives PART.json (with the raw observations) after every entry, one log,
and session.json. A step that fails or is stopped takes no other with it. --dry-run: on the CPU, fusar-tiny alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PARTS = ("device", "graphs", "engines", "huggingface")
MODELS = ("tiny", "3b", "7b")
LIMIT_S = 530
"""Below the ten minutes of one call, with room for the start and the way back."""


def steps(given: argparse.Namespace) -> list[tuple[str, str | None]]:
    """(part, model), each a process: a crash takes one of them. Part `device` has no model."""
    return [(part, model) for part in given.parts for model in ((None,) if part == "device" else given.models)]


def interpreter(part: str, given: argparse.Namespace) -> str:
    """Part `engines` runs in the Python that TensorRT's wheel is for, where that was carried; the others in ours."""
    carried = given.store / "tensorrt" / "bin" / "python"
    return str(carried) if part == "engines" and carried.is_file() and not given.dry_run else sys.executable


def command(part: str, model: str | None, given: argparse.Namespace) -> list[str]:
    words = [interpreter(part, given), "-B", str(HERE / f"part_{part}.py"), "--out", str(given.out)]
    if part in ("graphs", "engines"):
        words += ["--work", str(given.store / "work")]
    if model is not None:
        words += ["--models", model]
    return [*words, *(["--dry-run"] if given.dry_run and part != "graphs" else [])]


def environment(part: str, given: argparse.Namespace) -> dict[str, str]:
    """The carried packages go before the machine's own, but not into the carried Python, which has its own."""
    paths = [str(ROOT)]
    if interpreter(part, given) == sys.executable:
        before = os.environ.get("PYTHONPATH")
        paths += [str(given.store / "session"), *([before] if before else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def run_step(part: str, model: str | None, given: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Run one step for at most `limit_s`; what it printed goes to OUT/session.log."""
    start = time.monotonic()
    with open(given.out / "session.log", "a") as log:
        log.write(f"--- {part} {model or ''}, {limit_s:.0f} s left\n")
        log.flush()
        process = subprocess.Popen(
            command(part, model, given), env=environment(part, given), stdout=log, stderr=log, start_new_session=True
        )
        try:
            status: int | str = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own group, compilers that it started included
            process.wait()
            status = "stopped at the limit"
    return {"status": status, "seconds": round(time.monotonic() - start, 1)}


def keep_bandwidth(given: argparse.Namespace) -> None:
    """A copy of device.json for a later call, whose OUT is another."""
    if (given.out / "device.json").is_file():
        (given.store / "work").mkdir(parents=True, exist_ok=True)
        shutil.copy(given.out / "device.json", given.store / "work" / "device.json")


def table(out: Path) -> list[str]:
    """One line an entry: latencies where it has them, else what became of it."""
    lines = []
    for part in PARTS:
        path = out / f"{part}.json"
        for name, entry in json.loads(path.read_text())["entries"].items() if path.is_file() else ():
            words = [f"{part} {name}:"]
            if "error" in entry:
                words.append(entry["error"])
            for what, ms in entry.get("ms", {}).items():
                if isinstance(ms, dict):
                    words.append(f"{what} {ms['p50']:.3f}/{ms['p90']:.3f}/{ms['p99']:.3f} ms")
            if "outputs" in entry:
                words.append("cosine " + " ".join(f"{figures['cosine']:.6f}" for figures in entry["outputs"].values()))
            if "gb_s" in entry:
                words.append(f"{entry['gb_s']:.0f} GB/s")
            if "decode_floor" in entry:
                words.append(f"decode at {entry['decode_floor']['share']:.0%} of the copy bandwidth")
            lines.append(" ".join(words))
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help=f"of all parts together (default {LIMIT_S})")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: NumPy device, stand-in of TensorRT")
    given = parser.parse_args(arguments)
    given.models = given.models or (["tiny"] if given.dry_run else list(MODELS))
    given.out, given.store = given.out.absolute(), given.store.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        (given.out / f"{part}.json").unlink(missing_ok=True)
    end, ran = time.monotonic() + given.limit_s, {}
    for part, model in steps(given):
        left, name = end - time.monotonic(), part if model is None else f"{part} {model}"
        ran[name] = run_step(part, model, given, left) if left > 1 else {"status": "not started: no time left"}
        (given.out / "session.json").write_text(json.dumps({"dry_run": given.dry_run, "steps": ran}, indent=1) + "\n")
        print(f"{name}: {ran[name]}", flush=True)
        keep_bandwidth(given)
    print("\n".join(table(given.out)))
    return 0 if all(result["status"] == 0 for result in ran.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
