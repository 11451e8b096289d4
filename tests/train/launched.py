"""What each process of a launch runs: `launched.py JOBS.json`, a list of the keyword arguments of `Job`.

The losses of a job lie in `OUT.losses`, one JSON object a step; which files a process but the first wrote, nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2_5_VLDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What `accelerate launch --config_file export/accelerate/fsdp.yaml` puts into the environment (tested)."""


@dataclass
class Job:
    """One stage."""

    recipe: str
    stage: str
    data: str
    out: str
    init: str | None
    dies: tuple[int, int] | None = None
    """(process, forward) that raises."""
    naive: bool = False
    """Each process takes the mean over its own tokens, and the processes' means are averaged."""


def launch(jobs: list[Job], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes on gloo."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*command, str(listed)],
        capture_output=True,
        text=True,
        env=os.environ | own,
        cwd=folder,
        timeout=300,
        check=False,
    )


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in out.with_name(f"{out.name}.losses").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def run_job(job: Job) -> None:
    """Train, and keep the log that `train` removes with its work."""
    from fusar_edge.train import run
    from fusar_edge.train.sft import SftModel

    real, remove, seen = SftModel.forward, run.shutil.rmtree, [0]
    process = int(os.environ.get("RANK", "0"))

    def forward(self: SftModel, num_items_in_batch: Any = None, **batch: Any) -> dict[str, torch.Tensor]:
        seen[0] += 1
        if job.dies and tuple(job.dies) == (process, seen[0]):
            raise RuntimeError("this process dies here")
        if job.naive:
            count = int(os.environ.get("WORLD_SIZE", "1"))
            return {"loss": real(self, **batch)["loss"] / count}
        return real(self, num_items_in_batch, **batch)

    def kept(path: Path) -> None:
        (log,) = Path(path).glob("*/log.jsonl")
        log.rename(Path(job.out).with_name(f"{Path(job.out).name}.losses"))
        remove(path)

    SftModel.forward, run.shutil = forward, _Shell(kept)  # type: ignore[method-assign, assignment]
    try:
        run.train(job.recipe, job.stage, [job.data], Path(job.out), init=job.init, log=lambda _: None)  # type: ignore[arg-type]
    finally:
        SftModel.forward, run.shutil = real, sys.modules["shutil"]  # type: ignore[method-assign]


class _Shell:
    """`shutil` of one module, with another rmtree."""

    copyfile = staticmethod(shutil.copyfile)

    def __init__(self, rmtree: Any) -> None:
        self.rmtree = rmtree


def fsdp_without_gpus() -> None:
    """Accelerate leaves FSDP out without GPUs; torch does not. So processes on gloo say that they have some."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def backend(*_: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def device(state: PartialState) -> None:
        state.device = torch.device("cpu")

    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend, PartialState.set_device = backend, device


def main() -> None:
    warnings.simplefilter("ignore")
    if "ACCELERATE_USE_FSDP" in os.environ:
        fsdp_without_gpus()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_job(Job(**job))


if __name__ == "__main__":
    main()
