"""Memory of a bundle while it runs, in a process of its own: python -m fusar_edge.engines.footprint BUNDLE THREADS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.bench.machine import peak_memory_mib
from fusar_edge.errors import EdgeError

NEW_TOKENS = 32


def footprint(bundle: Path, threads: int) -> dict[str, float]:
    """A process that opens the bundle, looks at a tile and answers two questions: `started_mib`, `peak_mib`.

    `started_mib`: before the bundle is opened, Python alone.
    """
    command = [sys.executable, "-m", "fusar_edge.engines.footprint", str(bundle), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeError(f"{bundle} did not answer in a process of its own: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(bundle: Path, threads: int) -> dict[str, Any]:
    from fusar_edge.runtime.bundle import open_bundle
    from fusar_edge.runtime.session import Session

    started = peak_memory_mib()
    session = Session(open_bundle(bundle), threads)
    size = session.bundle.settings.image_size
    session.look(np.random.default_rng(0).random((size, size), np.float32))
    for task in ("caption", "detect"):
        session.ask_ids(session.bundle.prompts.question(task), NEW_TOKENS)
    return {"started_mib": round(started, 1), "peak_mib": round(peak_memory_mib(), 1)}


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]), int(sys.argv[2]))))
