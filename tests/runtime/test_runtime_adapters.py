"""Exchanging a bundle's adapter: in one step, whatever kills it, and nothing looks sealed that is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from fakes import fake_settings, write_fake_bundle
from onnx import TensorProto, helper

from fusar_edge.errors import BundleError, InputError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.runtime import adapters
from fusar_edge.runtime.adapters import AdapterRecord, Placed, changing, data_name, put_adapter, use_adapter
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import ADAPTERS, AdapterFacts, BundleSettings, PlanFacts, open_bundle, seal_bundle

SHIFT = "decoder.layers.0.self_attn.q_proj.adapter_b.weight"
WIDTH = 4


def record(name: str) -> AdapterRecord:
    return AdapterRecord(
        name=name, stage="stage2", rank=1, targets=("q_proj",), sources={}, base={}, tlm_sha256="", vision_sha256="",
        recipe="", tensors={SHIFT: Placed((1, WIDTH), 64)},
    )  # fmt: skip


def data_file(path: Path, value: float) -> Path:
    path.write_bytes(bytes(64) + np.full((1, WIDTH), value, np.float32).tobytes())
    return path


def add(folder: Path, name: str, value: float) -> None:
    with changing(folder) as (path, manifest, _):
        put_adapter(path, manifest, record(name), data_file(path / ADAPTERS / "scratch", value))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A fake one whose logits are shifted by its adapter: ships by 1, planes by 2. ships answers."""
    folder = write_fake_bundle(tmp_path / "b").folder
    model = onnx.load(folder / "decoder.onnx")
    shift = TensorProto(name=SHIFT, data_type=TensorProto.FLOAT, dims=(1, WIDTH), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", data_name("ships")), ("offset", "64"), ("length", str(4 * WIDTH))):
        shift.external_data.add(key=key, value=value)
    model.graph.initializer.append(shift)
    last = next(node for node in model.graph.node if "logits" in node.output)
    for node in model.graph.node:
        node.input[:] = ["unshifted" if name == "logits" else name for name in node.input]
    last.output[list(last.output).index("logits")] = "unshifted"
    model.graph.node.append(helper.make_node("ReduceMax", [SHIFT], ["by"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["unshifted", "by"], ["logits"]))
    onnx.save(model, folder / "decoder.onnx")
    (folder / ADAPTERS).mkdir()
    data_file(folder / data_name("ships"), 1)
    adapters.write_record(folder, record("ships"))
    seal_bundle(
        folder, msgspec.structs.replace(fake_settings(), adapters=AdapterFacts(active="ships", exported="ships"))
    )
    add(folder, "planes", 2)
    return folder


def answer(folder: Path) -> float:
    """The shift that a process which opens the bundle finds."""
    backend = open_backend(open_bundle(folder), threads=1)
    s = backend.settings
    one = np.zeros((1, 1), np.int32)
    tokens = np.zeros((1, s.cells**2, s.channels), np.float32)
    logits = backend.step(backend.new_cache(4), one, tokens, one - 1, np.zeros((3, 1, 1), np.int32)).logits
    return float(logits.max())


def test_the_adapter_in_use_is_the_one_that_answers(bundle: Path) -> None:
    first = answer(bundle)
    assert use_adapter(bundle, "planes").settings.adapters == AdapterFacts(active="planes", exported="ships")
    assert answer(bundle) == pytest.approx(first + 1)
    use_adapter(bundle, "ships")
    assert answer(bundle) == pytest.approx(first)


def test_a_process_that_has_the_bundle_open_goes_on_as_it_was(bundle: Path) -> None:
    opened = open_bundle(bundle)
    use_adapter(bundle, "planes")
    assert opened.settings.adapters == AdapterFacts(active="ships", exported="ships")
    assert sha256_file(bundle / FILENAME) != opened.sha256


def killed_after(count: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run `act`, and have the power fail at its `count`th change of the disk. Returns whether it failed."""
    done = [0]

    class PowerCutError(BaseException):
        pass

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*given: object, **named: object) -> object:
            if done[0] == count:
                raise PowerCutError
            done[0] += 1
            return real(*given, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "mkdir", counted(Path.mkdir))
        patch.setattr(Path, "write_bytes", counted(Path.write_bytes))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        try:
            act()
        except PowerCutError:
            return True
    return False


def at_every_step(bundle: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the bundle, each after a kill one step later; the last is after none."""
    copies = []
    for count in range(40):
        copies.append(Path(shutil.copytree(bundle, bundle.with_name(f"killed-{count}"))))
        if not killed_after(count, lambda: change(copies[-1]), monkeypatch):
            assert count > 4
            return copies
    raise AssertionError("the change has no end")


def test_a_kill_at_any_step_of_use_leaves_the_one_adapter_or_the_other(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answer(bundle)
    copies = at_every_step(bundle, lambda folder: use_adapter(folder, "planes"), monkeypatch)
    found = [answer(copy) for copy in copies]  # each opens, whole and sealed
    assert set(found) == {before, before + 1}
    assert found == sorted(found)
    for copy in copies:
        use_adapter(copy, "planes")
        assert answer(copy) == before + 1


def test_a_kill_at_any_step_of_add_and_remove_leaves_a_whole_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for copy in at_every_step(bundle, lambda folder: add(folder, "tanks", 3), monkeypatch):
        names = adapters.names_in(open_bundle(copy).manifest)
        assert names in (["planes", "ships"], ["planes", "ships", "tanks"])
        if "tanks" not in names:
            add(copy, "tanks", 4)
        use_adapter(copy, "tanks")
        assert sorted(p.name for p in (copy / ADAPTERS).iterdir()) == sorted(
            f"{n}.{end}" for n in ("planes", "ships", "tanks") for end in ("data", "json")
        )
        shutil.rmtree(copy)
    for copy in at_every_step(bundle, lambda folder: adapters.remove_adapter(folder, "planes"), monkeypatch):
        assert adapters.names_in(open_bundle(copy).manifest) in (["ships"], ["planes", "ships"])
        with changing(copy) as (folder, manifest, _):  # what the kill left is swept away by the next change
            files = {f"{ADAPTERS}/{path.name}" for path in (folder / ADAPTERS).iterdir()}
            assert files == {name for name in manifest.files if name.startswith(ADAPTERS)}


@pytest.mark.parametrize("name", ["planes.data", "ships.data", "planes.json"])
def test_a_changed_adapter_is_refused_by_name_used_or_not(bundle: Path, name: str) -> None:
    path = bundle / ADAPTERS / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    for look in (lambda: open_bundle(bundle), lambda: use_adapter(bundle, "planes")):
        with pytest.raises(BundleError, match=f"{name} was changed"):
            look()


def test_a_name_that_is_not_there_is_refused_with_those_that_are(bundle: Path) -> None:
    with pytest.raises(InputError, match="has no adapter 'tanks'; it has: planes, ships"):
        use_adapter(bundle, "tanks")


def test_another_layout_is_refused(bundle: Path) -> None:
    other = msgspec.structs.replace(record("wide"), tensors={SHIFT: Placed((2, WIDTH), 64)})
    with changing(bundle) as (path, manifest, _):
        put_adapter(path, manifest, other, data_file(path / ADAPTERS / "scratch", 9))
    with pytest.raises(BundleError, match="another layout"):
        use_adapter(bundle, "wide")


def test_two_changes_at_once_are_refused(bundle: Path) -> None:
    with changing(bundle), pytest.raises(BundleError, match="being changed by another process"):
        use_adapter(bundle, "planes")


def test_a_bundle_that_lost_the_adapter_in_use_is_refused(bundle: Path) -> None:
    path = bundle / FILENAME
    manifest = json.loads(path.read_text())
    manifest["settings"]["adapters"]["active"] = "tanks"
    path.write_text(json.dumps(manifest | {"seal": ""}))
    with pytest.raises(BundleError, match=r"does not list adapters/tanks\.json, the adapter in use"):
        open_bundle(bundle)


def test_a_bundle_without_a_branch_and_a_plan_are_refused_with_the_reason(bundle: Path, tmp_path: Path) -> None:
    plain = write_fake_bundle(tmp_path / "plain").folder
    with pytest.raises(BundleError, match="merged into the weights"):
        use_adapter(plain, "ships")
    plan = PlanFacts(
        tensorrt="10.16", compute_capability="8.7", gpu="Orin", prefill_tokens=8, vision_batch=1, kv_dtype="float32"
    )
    settings: BundleSettings = msgspec.structs.replace(open_bundle(bundle).settings, engine="tensorrt", plan=plan)
    for name in ("vision", "decoder"):
        (bundle / f"{name}.plan").write_bytes(b"plan")
    seal_bundle(bundle, settings)
    with pytest.raises(BundleError, match="TensorRT bundle: the plan holds the weights of the adapter ships"):
        use_adapter(bundle, "planes")


def test_the_command_lists_uses_and_verifies_without_the_workshop(bundle: Path) -> None:
    code = (
        "import sys\nfrom fusar_edge.cli import main\nsys.argv[0] = 'fusar-edge'\nmain_ok = True\ntry:\n    main()\n"
        "except SystemExit as end:\n    main_ok = not end.code\n"
        "print([m for m in ('torch', 'transformers', 'onnx', 'peft') if m in sys.modules], main_ok, file=sys.stderr)"
    )

    def run(*arguments: str) -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1] if done.stdout else "", done.stderr

    out, said = run("bundle", "adapters", "use", str(bundle), "planes")
    assert json.loads(out)["active"] == "planes"
    assert said.endswith("[] True\n")
    assert "measured with the adapter ships" in said
    out, said = run("bundle", "adapters", "list", str(bundle))
    assert [(a["name"], a["active"]) for a in json.loads(out)["adapters"]] == [("planes", True), ("ships", False)]
    assert said.endswith("[] True\n")
    out, said = run("verify", str(bundle))
    assert (json.loads(out)["ok"], json.loads(out)["adapter"]) == (True, "planes")
    assert "planes, in use, was not measured" in said
    out, said = run("bundle", "adapters", "remove", str(bundle), "ships")
    assert out == ""
    assert "it stays" in said
    (bundle / data_name("planes")).write_bytes(b"")
    assert "planes.data was changed" in run("verify", str(bundle))[1]
