"""Several processes train what one process with the same global batch trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from launched import FSDP, Job, launch, losses, run_job
from safetensors.torch import load_file
from small_data import write_recipe
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.data.simulator import write_dataset
from fusar_edge.errors import RecipeError
from fusar_edge.manifest import read_manifest
from fusar_edge.model.checkpoint import load_checkpoint
from fusar_edge.recipes import load_recipe, shelf_folder
from fusar_edge.specs import ModelRecipe
from fusar_edge.train import processes
from fusar_edge.train.loop import Schedule, _arguments
from fusar_edge.train.run import train
from fusar_edge.train.sft import SftData

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
CLOSE = 1e-5
"""Losses are about 8 and weights move by 0.008; averaging tokens per process is off by 1e-2 and 2e-3."""


def with_batch(recipe: Path, batch: int, accumulate: int = 1) -> str:
    """The recipe without dropout, which differs by process, and with `batch` images in each process."""
    head, stages = recipe.read_text().split("[train.stage1]")
    stages = stages.replace("batch = 2", f"batch = {batch}\naccumulate = {accumulate}")
    path = recipe.with_name(f"small-{batch}-{accumulate}.toml")
    path.write_text(f"{head}[train.lora]\ndropout = 0.0\n\n[train.stage1]{stages}")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, a base, and both stages of one process with two images a step: one1, one2."""
    folder = tmp_path_factory.mktemp("processes")
    write_dataset(folder / "sim", 8, 3, size=504)
    recipe = write_recipe(folder)
    data = str(folder / "sim" / "triplets.jsonl")
    train(str(recipe), "base", [data], folder / "base", log=lambda _: None)
    for job in both_stages(folder, "one", with_batch(recipe, 2)):
        run_job(job)
    return folder


def both_stages(folder: Path, name: str, recipe: str, **how: object) -> list[Job]:
    data = str(folder / "sim" / "triplets.jsonl")
    one = Job(recipe, "1", data, str(folder / f"{name}1"), str(folder / "base"), **how)  # type: ignore[arg-type]
    two = Job(recipe, "2", data, str(folder / f"{name}2"), str(folder / "one1"), **how)  # type: ignore[arg-type]
    return [one, two]


def furthest(a: Path, b: Path) -> float:
    """Largest difference of any weight."""
    one, other = (load_checkpoint(path)[0].state_dict() for path in (a, b))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def same(folder: Path, name: str, stages: str = "12") -> Iterator[bool]:
    """Of each stage: losses of every step as one process has them; weights as well."""
    for stage in stages:
        expected, found = losses(folder / f"one{stage}"), losses(folder / f"{name}{stage}")
        yield len(found) == len(expected) == 4 and np.allclose(found, expected, atol=CLOSE, rtol=0)
        yield furthest(folder / f"one{stage}", folder / f"{name}{stage}") < CLOSE


def test_two_processes_have_the_loss_curve_and_the_weights_of_one_with_both_images(folder: Path) -> None:
    recipe = with_batch(folder / "small-official.toml", 1)
    naive, _ = both_stages(folder, "naive", recipe, naive=True)
    done = launch([*both_stages(folder, "two", recipe), naive], folder)
    assert done.returncode == 0, done.stderr
    assert list(same(folder, "two")) == [True] * 4
    assert list(same(folder, "naive", "1")) == [False] * 2  # answers differ in length: a mean of means is another loss
    one, two = (read_manifest(folder / f"{name}1") for name in ("one", "two"))
    assert two.figures == one.figures
    assert two.settings["processes"] == 2
    assert not list(folder.glob("*.training")) + list(folder.glob(".*"))


def test_two_batches_accumulated_are_one_step(folder: Path) -> None:
    for job in both_stages(folder, "sum", with_batch(folder / "small-official.toml", 1, 2)):
        run_job(job)
    assert list(same(folder, "sum")) == [True] * 4


def test_items_depend_on_the_seed_and_their_number_alone(folder: Path) -> None:
    images = list(range(5))
    long, short = SftData(images, 14, seed=3), SftData(images, 6, seed=3)  # type: ignore[arg-type]
    assert [long[i] for i in range(6)] == [short[i] for i in range(6)]
    assert sorted(long[i] for i in range(5)) == sorted(long[i] for i in range(5, 10)) == images


def test_the_base_stage_refuses_several_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Two:
        num_processes, is_main_process = 2, True

    monkeypatch.setattr("fusar_edge.train.run.processes", Two)
    with pytest.raises(RecipeError, match="one process"):
        train(str(folder / "small-official.toml"), "base", [], tmp_path / "out")


def test_fsdp_1_is_refused_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Two:
        num_processes, is_main_process, distributed_type = 2, True, DistributedType.MULTI_GPU

    for module in ("run", "processes"):
        monkeypatch.setattr(f"fusar_edge.train.{module}.processes", Two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    data = [str(folder / "sim" / "triplets.jsonl")]
    with pytest.raises(RecipeError, match="fsdp_version: 2"):
        train(str(folder / "small-official.toml"), "1", data, tmp_path / "out", init=folder / "base")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("FSDP_VERSION", "2")
    processes.check_launch()


def test_processes_wait_a_day_for_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "PartialState", lambda **given: given)
    assert processes.processes()["timeout"] == timedelta(hours=24)
    schedule = Schedule(1, 1, 1e-4, warmup=0, decay=0, scheduler="cosine", seed=0)
    assert _arguments(tmp_path, schedule, bf16=False).ddp_timeout_delta == timedelta(hours=24)


# Slow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_dies_ends_both_and_the_same_command_goes_on_to_the_same_weights(
    folder: Path, strategy: str
) -> None:
    recipe, environment = with_batch(folder / "small-official.toml", 1), FSDP if strategy == "fsdp" else {}
    name = f"killed-{strategy}"
    (job, _) = both_stages(folder, name, recipe, dies=(1, 3))
    done = launch([job], folder, **environment)
    assert done.returncode != 0
    assert "this process dies here" in done.stderr
    work = folder / f"{name}1.training" / "stage1"
    (checkpoint,) = work.glob("checkpoint-2")
    assert {path.name for path in checkpoint.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() == (strategy == "fsdp")
    job.dies = None
    done = launch([job], folder, **environment)
    assert done.returncode == 0, done.stderr
    assert furthest(folder / "one1", folder / f"{name}1") < CLOSE
    assert losses(folder / f"{name}1")[-2:] == pytest.approx(losses(folder / "one1")[-2:], abs=CLOSE)
    assert read_manifest(folder / f"{name}1").figures == read_manifest(folder / "one1").figures


@pytest.mark.slow
def test_fsdp_has_the_loss_curve_and_the_weights_of_one_process(folder: Path) -> None:
    jobs = both_stages(folder, "fsdp", with_batch(folder / "small-official.toml", 1))
    done = launch(jobs, folder, **FSDP)
    assert done.returncode == 0, done.stderr
    assert list(same(folder, "fsdp")) == [True] * 4


@pytest.mark.slow
def test_a_bfloat16_base_with_checkpointing_trains_alike_with_ddp_and_fsdp(folder: Path) -> None:
    config = load_checkpoint(folder / "base")[0].config
    del config.fusar
    published = folder / "published"
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(published)
    shutil.copyfile(folder / "base" / "tokenizer.json", published / "tokenizer.json")
    text = Path(with_batch(folder / "small-official.toml", 1)).read_text()
    common = '[train]\nfrozen = "bfloat16"\ncheckpointing = true\n\n'
    head = f'name = "small"\nbase = "{published}"\nimage_size = 84\n\n{common}'
    recipe = folder / "published.toml"
    recipe.write_text(head + text[text.index("[train.lora]") :])
    curves = []
    for name, environment in (("half-ddp", {}), ("half-fsdp", FSDP)):
        one, two = both_stages(folder, name, str(recipe))
        one.init, two.init = None, one.out
        done = launch([one, two], folder, **environment)
        assert done.returncode == 0, done.stderr
        curves.append([losses(Path(job.out)) for job in (one, two)])
        adapter = load_file(folder / f"{name}2" / "adapter_model.safetensors")
        assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert np.allclose(*curves, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_torchrun_launches_the_command_line_and_one_process_speaks(folder: Path) -> None:
    """`accelerate launch` does the same, with more in the environment, where there are GPUs."""
    recipe, out = with_batch(folder / "small-official.toml", 1), folder / "launched"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    verb = ["-m", "fusar_edge", "train", recipe, "--stage", "1", "--init", str(folder / "base")]
    paths = ["--data", str(folder / "sim" / "triplets.jsonl"), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *verb, *paths], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["steps"] == 4
    assert done.stderr.count("4 steps of 2") == 1
    assert furthest(folder / "one1", out) < CLOSE


# Configurations of the shelf ----------------------------------------------------------------------------------------


def environment_of(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file` gives each process."""
    file = shelf_folder("export") / "accelerate" / f"{name}.yaml"
    words = ["--config_file", str(file), "-m", "fusar_edge", "train", "fusar-gpt-7b"]
    arguments = accelerate_launch.launch_command_parser().parse_args(words)
    arguments, config, _ = accelerate_launch._validate_launch_command(arguments)
    assert arguments.num_processes == 4
    if not arguments.use_deepspeed:
        return prepare_multi_gpu_env(arguments)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    return prepare_deepspeed_cmd_env(arguments)[1]


def test_the_shelf_s_configurations_are_accelerate_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate_launch, "is_deepspeed_available", lambda: True)
    assert "ACCELERATE_USE_FSDP" not in environment_of("ddp")
    assert environment_of("ddp")["ACCELERATE_MIXED_PRECISION"] == "no"
    found = environment_of("fsdp")
    assert {name: found[name] for name in FSDP} == FSDP
    for name, value in environment_of("zero2").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision(os.environ["ACCELERATE_MIXED_PRECISION"])
    settings = plugin.hf_ds_config.config
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["bf16"]["enabled"] is True
    assert (settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]) == ("auto", "auto")


@pytest.mark.parametrize("name", ["fusar-gpt-7b", "fusar-gpt-3b"])
def test_recipes_of_published_bases_checkpoint_and_freeze_in_bfloat16(name: str) -> None:
    recipe = load_recipe("export", name, ModelRecipe)[0]
    assert (recipe.train.checkpointing, recipe.train.frozen) == (True, "bfloat16")
    assert (recipe.train.stage1.batch, recipe.train.stage2.batch) == (1, 1)


def test_a_model_from_scratch_is_not_rounded() -> None:
    text = (
        (shelf_folder("export") / "fusar-tiny.toml").read_text().replace("[train]\n", '[train]\nfrozen = "bfloat16"\n')
    )
    with pytest.raises(msgspec.ValidationError, match="from scratch"):
        msgspec.toml.decode(text, type=ModelRecipe)
