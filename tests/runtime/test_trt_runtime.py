"""TrtBackend over a fake TensorRT on the NumPy device, against OrtBackend on the same graphs."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import fakes
import msgspec
import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeTensorrt, write_plan, write_trt_bundle
from fakes import CELLS, END, IMAGE, SIZE, write_fake_bundle

from fusar_edge.data.tasks import canonical_prompt
from fusar_edge.engines.plain_twin import plain_bundle
from fusar_edge.engines.profiles import decoder_profiles
from fusar_edge.errors import BundleError, DeviceError, InputError
from fusar_edge.runtime import trt as trt_module
from fusar_edge.runtime.backend import Backend, open_backend
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle
from fusar_edge.runtime.cache import KvCache
from fusar_edge.runtime.device_numpy import NumpyDevice
from fusar_edge.runtime.generate import Generation, Prefix, generate, run_prefix
from fusar_edge.runtime.session import Session
from fusar_edge.runtime.trt import DeviceCache, TrtBackend, check_plan, open_trt
from fusar_edge.runtime.trt_api import DeviceFacts, driver_problem

VERSIONS = ("8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106")
PREFIX = Prefix((1, 2, 3), CELLS, IMAGE, (4,))
QUESTIONS = ((10, 11, 12, 13), (7,), tuple(range(100, 140)))
PREFILL, CHANNELS = 68, 16
ORIN = DeviceFacts("Orin", "8.7", 1 << 34, 1 << 33, "13.0")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fake bundle with heads and tokens of 16: a row of the cache, and an image's tokens, are 256 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes, "CHANNELS", CHANNELS)
        patch.setattr(fakes, "DIM", 16)
        patch.setattr(fakes, "ROW", fakes.LAYERS * 2 * fakes.HEADS * 16)
        return write_fake_bundle(Path(tmp_path_factory.mktemp("plain")) / "b", context_tokens=512)


@pytest.fixture(scope="module")
def bundle(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same as plans."""
    return write_trt_bundle(Path(tmp_path_factory.mktemp("trt")) / "b", plain, PREFILL)


class Rig:
    """A backend and what it stands on."""

    def __init__(self, bundle: Bundle, version: str = "10.16.1.11") -> None:
        self.device = NumpyDevice()
        self.trt = FakeTensorrt(self.device, version)
        self.backend = TrtBackend(bundle, self.trt, self.device)
        self.uploaded: list[int] = []
        copy = self.device.copy_to_device

        def counted(address: int, array: np.ndarray) -> None:
            self.uploaded.append(array.nbytes)
            copy(address, array)

        self.device.copy_to_device = counted  # type: ignore[method-assign]  # to count

    def rows(self, cache: DeviceCache) -> np.ndarray:
        """The whole cache as float32 [capacity, 64]."""
        return self.device.view(cache.address, cache.capacity * 256).view(np.float32).reshape(cache.capacity, 64)


@pytest.fixture
def rig(bundle: Bundle) -> Rig:
    return Rig(bundle)


@pytest.fixture(scope="module")
def ort(plain: Bundle) -> Backend:
    return open_backend(plain, threads=1)


def look(backend: Backend, seed: int = 5, batch: int = 1) -> np.ndarray:
    r = np.random.default_rng(seed)
    anchors = r.normal(size=(batch, 4, 64)), r.random((batch, 4, 2)), np.ones((batch, 4))
    return backend.vision(r.random((batch, 1, SIZE, SIZE), np.float32), *anchors)


def answers(backend: Backend, tokens: int = 12, seeds: tuple[int, ...] = (5, 6)) -> list[Generation]:
    """Two images, three questions each, in one cache."""
    cache, said = backend.new_cache(120), []
    for seed in seeds:
        visual = look(backend, seed)
        run_prefix(backend, cache, PREFIX, visual)
        said += [generate(backend, cache, PREFIX, visual, q, tokens, {END}) for q in QUESTIONS]
    return said


def half_cache(plain: Bundle, folder: Path) -> Bundle:
    """`plain` with `past` and `new` in FP16, each row twice as long, so that it keeps its 256 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes, "CHANNELS", CHANNELS)
        patch.setattr(fakes, "DIM", 32)
        patch.setattr(fakes, "ROW", fakes.LAYERS * 2 * fakes.HEADS * 32)
        bundle = write_fake_bundle(folder, context_tokens=512)
    path = bundle.file("decoder.onnx")
    graph = onnx.load(path).graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{n}_32" if n in ("past", "new") else n for n in names]
    graph.node.insert(0, onnx.helper.make_node("Cast", ["past"], ["past_32"], to=onnx.TensorProto.FLOAT))
    graph.node.append(onnx.helper.make_node("Cast", ["new_32"], ["new"], to=onnx.TensorProto.FLOAT16))
    for value in (*graph.input, *graph.output):
        if value.name in ("past", "new"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return bundle


def step(backend: Backend, cache, ids: list[int], visual: np.ndarray, index: list[int] | None = None) -> np.ndarray:
    n, at = len(ids), cache.length
    positions = np.broadcast_to(np.arange(at, at + n, dtype=np.int32), (3, 1, n))
    out = backend.step(cache, np.array([ids], np.int32), visual, np.array([index or [-1] * n], np.int32), positions)
    return out.logits.copy()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_answer_is_that_of_onnx_runtime_on_every_tensorrt(bundle: Bundle, ort: Backend, version: str) -> None:
    got, wanted = answers(Rig(bundle, version).backend), answers(ort)
    assert [g.ids for g in got] == [w.ids for w in wanted]
    assert len({g.ids for g in got}) == 6
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g.log_probabilities, w.log_probabilities, rtol=1e-5)


def test_a_cache_in_fp16_holds_what_onnx_runtime_writes(plain: Bundle, tmp_path: Path) -> None:
    half = half_cache(plain, tmp_path / "half")
    rig, ort = Rig(write_trt_bundle(tmp_path / "trt", half, PREFILL)), open_backend(half, threads=1)
    got, wanted = rig.backend.new_cache(60), ort.new_cache(60)
    for backend, cache in ((rig.backend, got), (ort, wanted)):
        run_prefix(backend, cache, PREFIX, look(backend))
        step(backend, cache, [3], look(backend))
    assert isinstance(wanted, KvCache)
    assert wanted.buffer.dtype == np.float16
    rows = rig.device.view(got.address, 9 * 256).view(np.float16).reshape(9, -1)
    np.testing.assert_array_equal(rows, wanted.past().reshape(9, -1))


def test_a_session_answers_alike_on_both_backends(bundle: Bundle, plain: Bundle, rig: Rig) -> None:
    image = np.random.default_rng(3).random((SIZE, SIZE), np.float32)
    said = []
    for session in (Session(plain, threads=1), Session(bundle, backend=rig.backend)):
        session.look(image)
        said.append([session.ask(task).generation.ids for task in ("count", "caption", "detect")])
    assert said[0] == said[1]


def test_the_rows_of_the_cache_are_those_of_onnx_runtime_and_nothing_else_is_written(rig: Rig, ort: Backend) -> None:
    caches = rig.backend.new_cache(60), ort.new_cache(60)
    for backend, cache in zip((rig.backend, ort), caches, strict=True):
        run_prefix(backend, cache, PREFIX, look(backend))
        for ids in ([9, 8], [7], [6]):
            step(backend, cache, ids, look(backend))
        cache.truncate(10)
        step(backend, cache, [5], look(backend))
    mine, other = caches
    assert isinstance(other, KvCache)
    assert mine.length == other.length == 11
    rows = rig.rows(mine)
    np.testing.assert_array_equal(rows[:12], other.buffer.reshape(60, -1)[:12])  # row 11 is what truncate left behind
    assert np.isnan(rows[12:]).all()


def test_one_new_token_after_others_runs_in_profile_1_and_all_else_in_profile_0(rig: Rig) -> None:
    visual, cache = look(rig.backend), rig.backend.new_cache(20)
    for ids in ([1], [2, 3], [4], [5]):
        step(rig.backend, cache, ids, visual)
    prefill, decode = rig.trt.engines[1].contexts
    assert (prefill.profile, decode.profile) == (0, 1)
    row = "2, 2, 1, 1, 16)"
    assert prefill.runs == {f"(0, {row}": 1, f"(1, {row}": 1}
    assert decode.runs == {f"(3, {row}": 1, f"(4, {row}": 1}


def test_a_decode_step_tells_tensorrt_what_changed_alone(rig: Rig) -> None:
    visual, cache = look(rig.backend), rig.backend.new_cache(20)
    for ids in ([1, 2], [3], [4]):
        step(rig.backend, cache, ids, visual)
    decode = rig.trt.engines[1].contexts[1]
    decode.told.clear()
    step(rig.backend, cache, [5], visual)
    assert decode.told == {"shape of past": 1, "address of new": 1}


def test_the_next_ids_of_a_step_stay_when_another_is_made(rig: Rig) -> None:
    visual, cache = look(rig.backend), rig.backend.new_cache(20)
    index, position = np.full((1, 1), -1, np.int32), np.zeros((3, 1, 1), np.int32)
    steps = [rig.backend.step(cache, np.array([[i]], np.int32), visual, index, position + i) for i in range(6)]
    last = steps[-1].logits.argmax(-1)
    assert len({int(s.next_ids[0]) for s in steps}) > 1
    assert (steps[-1].next_ids == last).all()


def test_nothing_is_allocated_after_the_warm_up_and_each_token_waits_once(rig: Rig) -> None:
    backend, device = rig.backend, rig.device
    cache = backend.new_cache(120)
    allocated = device.allocations
    for seed in (1, 2):
        waited = device.synchronisations
        visual = look(backend, seed)
        run_prefix(backend, cache, PREFIX, visual)
        assert device.synchronisations == waited + 2
        said = generate(backend, cache, PREFIX, visual, QUESTIONS[0], 15, {END})
        assert device.synchronisations == waited + 2 + len(said.log_probabilities)
    assert device.allocations == allocated


def with_graphs(plain: Bundle, folder: Path, most: int, version: str = "10.16.1.11") -> Rig:
    return Rig(write_trt_bundle(folder, plain, PREFILL, cuda_graphs=most), version)


def test_decode_steps_as_cuda_graphs_answer_as_onnx_runtime_does(plain: Bundle, ort: Backend, tmp_path: Path) -> None:
    """The second image has the lengths of the first: its steps are launches alone."""
    rig = with_graphs(plain, tmp_path / "b", 1024)
    wanted = answers(ort)
    cache, said = rig.backend.new_cache(120), []
    for seed in (5, 6):
        visual = look(rig.backend, seed)
        run_prefix(rig.backend, cache, PREFIX, visual)
        recorded = rig.device.recordings
        said += [generate(rig.backend, cache, PREFIX, visual, q, 12, {END}) for q in QUESTIONS]
    assert [s.ids for s in said] == [w.ids for w in wanted]
    assert recorded > 10
    assert rig.device.launches > 10
    longest = max(len(w.log_probabilities) + len(q) for w, q in zip(wanted, QUESTIONS * 2, strict=True))
    assert rig.device.recordings <= len(PREFIX) + longest
    # Another cache lies elsewhere: its steps are recorded anew, and right.
    again = rig.backend.new_cache(120)
    run_prefix(rig.backend, again, PREFIX, visual)
    before = rig.device.recordings
    assert generate(rig.backend, again, PREFIX, visual, QUESTIONS[0], 12, {END}).ids == said[3].ids
    assert rig.device.recordings > before
    rig.backend.close()
    assert rig.trt.ended[-1] == "closed"


def test_lengths_beyond_the_wanted_number_of_graphs_run_plainly(plain: Bundle, ort: Backend, tmp_path: Path) -> None:
    rig = with_graphs(plain, tmp_path / "b", 3)
    assert [g.ids for g in answers(rig.backend)] == [w.ids for w in answers(ort)]
    assert rig.device.recordings == 3
    decode = [context for context in rig.trt.engines[1].contexts if context.profile == 1]
    assert len(decode) == 4
    assert decode[0].runs


def test_a_step_that_cannot_be_captured_says_what_to_set(
    plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = with_graphs(plain, tmp_path / "b", 3)
    cache, visual = rig.backend.new_cache(20), look(rig.backend)
    step(rig.backend, cache, [1, 2], visual)

    def refuse(job: object) -> None:
        raise DeviceError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    monkeypatch.setattr(rig.device, "record", refuse)
    with pytest.raises(DeviceError, match=r"captured as a CUDA graph .*UNSUPPORTED.*cuda_graphs = 0"):
        step(rig.backend, cache, [3], visual)
    assert cache.length == 2


def test_cuda_graphs_on_tensorrt_8_6_are_refused(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cuda_graphs = 3 needs TensorRT 10 or later, here is 8\.6\.1"):
        with_graphs(plain, tmp_path / "b", 3, "8.6.1")


def test_the_visual_tokens_of_the_last_look_are_not_uploaded_again(rig: Rig) -> None:
    visual = look(rig.backend)
    uploaded = len(rig.uploaded)
    cache = rig.backend.new_cache(60)
    run_prefix(rig.backend, cache, PREFIX, visual)
    step(rig.backend, cache, [9], visual.copy())  # text alone needs none
    assert rig.uploaded[uploaded:] == [3 * 256, 3 * 256]  # ids, index, positions: each at an aligned address


@pytest.mark.parametrize("copied", [True, False])
def test_visual_tokens_from_elsewhere_and_of_an_earlier_look_are_uploaded(rig: Rig, ort: Backend, copied: bool) -> None:
    first = look(rig.backend, 1)
    if copied:
        first = first.copy()
    else:
        look(rig.backend, 2)
    got, wanted = rig.backend.new_cache(60), ort.new_cache(60)
    run_prefix(rig.backend, got, PREFIX, first)
    run_prefix(ort, wanted, PREFIX, look(ort, 1))
    np.testing.assert_array_equal(rig.rows(got)[: len(PREFIX)], wanted.past().reshape(len(PREFIX), -1))
    assert rig.uploaded[-2:] == [256, 3 * 256]


def test_a_changed_copy_is_never_taken_for_what_is_on_the_device(rig: Rig) -> None:
    visual = look(rig.backend)
    with pytest.raises(ValueError, match="read-only"):
        visual[0] = 0
    mine, logits = visual.copy(), []
    for value in (1.0, 2.0):
        mine[:] = value
        logits.append(step(rig.backend, rig.backend.new_cache(9), [IMAGE], mine, [0]))
    assert not np.allclose(*logits)


def test_each_image_of_a_batch_has_its_own_visual_tokens(rig: Rig, ort: Backend) -> None:
    both, wanted = look(rig.backend, 4, batch=2), look(ort, 4, batch=2)
    np.testing.assert_array_equal(both, wanted)
    uploaded = len(rig.uploaded)
    for image in (0, 1):
        one = slice(image, image + 1)
        got = step(rig.backend, rig.backend.new_cache(9), [IMAGE], both[one], [3])
        np.testing.assert_allclose(got, step(ort, ort.new_cache(9), [IMAGE], wanted[one], [3]), rtol=1e-5)
    with pytest.raises(InputError, match=r"visual tokens of \(2, 4, 16\) were given; a step takes \(1, 4, 16\)"):
        step(rig.backend, rig.backend.new_cache(9), [IMAGE], both, [3])
    assert len(rig.uploaded) == uploaded + 2  # the ids of each, and no image


def test_what_is_longer_than_the_prefill_of_the_plan_runs_in_parts(rig: Rig, ort: Backend) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 250, 2 * PREFILL + 5)]
    index = [-1] * (len(ids) - 1) + [2]  # a visual token in the last part
    caches = rig.backend.new_cache(200), ort.new_cache(200)
    got, wanted = (step(b, c, ids, look(b), index) for b, c in zip((rig.backend, ort), caches, strict=True))
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert caches[0].length == len(ids)
    assert sum(rig.trt.engines[1].contexts[0].runs.values()) == 3


@pytest.mark.parametrize("rows", [-1, 1])
def test_a_new_row_at_a_wrong_offset_does_not_go_unseen(
    rig: Rig, ort: Backend, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    place = DeviceCache.next_address
    monkeypatch.setattr(
        DeviceCache, "next_address", lambda self, n: place(self, n) + rows * self.row_bytes * bool(self.length)
    )
    assert [a.ids for a in answers(rig.backend)] != [a.ids for a in answers(ort)]


def test_a_stream_that_is_not_waited_for_does_not_go_unseen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    visual = look(rig.backend)
    monkeypatch.setattr(rig.device, "synchronise", lambda: None)
    assert np.isnan(step(rig.backend, rig.backend.new_cache(9), [1, 2], visual)).all()


def test_a_step_that_fails_or_does_not_fit_leaves_the_cache_as_it_was(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    visual, cache = look(rig.backend), rig.backend.new_cache(2 * PREFILL)
    step(rig.backend, cache, [1, 2], visual)
    with pytest.raises(InputError, match="135 tokens after 2 do not fit the KV cache of 136"):
        step(rig.backend, cache, [1] * (2 * PREFILL - 1), visual)
    prefill = rig.trt.engines[1].contexts[0]
    enqueue = prefill.execute_async_v3
    monkeypatch.setattr(prefill, "execute_async_v3", lambda stream: cache.length < PREFILL and enqueue(stream))
    with pytest.raises(DeviceError, match=r"decoder\.plan: TensorRT refuses to run"):
        step(rig.backend, cache, [1] * (PREFILL + 9), visual)
    assert cache.length == 2


def test_a_refused_tensor_is_named_with_what_tensorrt_said(rig: Rig) -> None:
    visual = look(rig.backend)
    with pytest.raises(DeviceError, match=r"refuses shape \(1, 0\) of input_ids \(\(1, 0\) of input_ids is outside"):
        rig.backend._prefill.run({"input_ids": (1, 0)}, {})
    with pytest.raises(DeviceError, match=r"refuses address 0x7 of past \(0x7 is not aligned"):
        rig.backend._prefill.run({}, {"past": 7})
    rig.backend._prefill._shapes.clear()
    with pytest.raises(DeviceError, match="without the shape or address of visual_tokens"):
        rig.backend._prefill.run({"input_ids": (1, 1)}, {})
    assert visual.shape == (1, CELLS**2, CHANNELS)


def test_more_images_or_a_longer_cache_than_the_plans_take_are_refused(rig: Rig) -> None:
    with pytest.raises(
        InputError, match=r"pixels of \(3, 1, 28, 28\) was given; this bundle's vision.plan takes up to"
    ):
        look(rig.backend, batch=3)
    with pytest.raises(InputError, match=r"a KV cache of 513 tokens: this bundle's decoder\.plan takes 1 to 512"):
        rig.backend.new_cache(513)
    full, visual = rig.backend.new_cache(512), look(rig.backend)
    step(rig.backend, full, [1] * 511, visual)
    assert np.isfinite(step(rig.backend, full, [2], visual)).all()  # the last row


def test_the_memory_of_a_dropped_cache_serves_the_next(rig: Rig) -> None:
    rig.device.memory_bytes = sum(b.nbytes for b in rig.device._blocks.values()) + 300 * 256
    for _ in range(4):
        cache = rig.backend.new_cache(200)
        step(rig.backend, cache, [1, 2], look(rig.backend))
        dropper = threading.Thread(target=list.clear, args=([cache],))
        del cache
        dropper.start()
        dropper.join()
        del dropper
    kept = rig.backend.new_cache(200)
    with pytest.raises(DeviceError, match="cannot allocate 51200 bytes"):
        rig.backend.new_cache(200)
    assert kept.room == 200


def test_another_thread_is_refused(rig: Rig) -> None:
    heard: list[Exception] = []

    def other() -> None:
        try:
            look(rig.backend)
        except DeviceError as problem:
            heard.append(problem)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "by the thread that opened it" in str(heard[0])


def test_after_close_no_memory_is_left_to_use(rig: Rig) -> None:
    with rig.backend as backend:
        cache = backend.new_cache(9)
        visual = look(backend)
    with pytest.raises(DeviceError, match="given back by close"):
        step(backend, cache, [1], visual)
    assert not rig.device._blocks
    assert sorted(rig.trt.ended[:2]) == ["decoder", "vision"]  # nothing of TensorRT outlives the context
    assert rig.trt.ended[2] == "closed"
    backend.close()


def test_rows_that_tensorrt_cannot_address_are_refused(tmp_path: Path) -> None:
    odd = write_trt_bundle(tmp_path / "odd", write_fake_bundle(tmp_path / "plain", context_tokens=256))
    device = NumpyDevice()
    trt = FakeTensorrt(device)
    with pytest.raises(BundleError, match=r"decoder\.plan: a token takes 48 bytes .* multiple of 256"):
        TrtBackend(odd, trt, device)
    assert not device._blocks
    assert trt.ended[-1] == "closed"
    assert set(trt.ended) == {"vision", "decoder", "closed"}


def test_a_plan_without_a_profile_for_each_use_is_refused(bundle: Bundle, plain: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "b")
    profiles = decoder_profiles(plain.settings, PREFILL, 512)[:1]
    write_plan(tmp_path / "b" / "decoder.plan", "decoder", plain.file("decoder.onnx"), profiles)
    with pytest.raises(BundleError, match=r"decoder\.plan: 1 optimisation profiles, not 2; build it again"):
        Rig(dataclasses.replace(bundle, folder=tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, r"decoder\.plan: input past is .* the bundle's settings say"),
        ({"channels": 7}, r"vision\.plan: output visual_tokens is"),
    ],
)
def test_plans_that_are_not_those_of_the_settings_are_refused(bundle: Bundle, change: dict, message: str) -> None:
    other = dataclasses.replace(bundle, settings=msgspec.structs.replace(bundle.settings, **change))
    with pytest.raises(BundleError, match=message):
        Rig(other)


def test_a_plan_that_tensorrt_does_not_know_is_refused_and_the_gpu_given_back(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "b")
    (tmp_path / "b" / "decoder.plan").write_bytes(b"no plan\n")
    device = NumpyDevice()
    with pytest.raises(BundleError, match=r"decoder\.plan: .* cannot open it \(Magic tag does not match\)"):
        TrtBackend(dataclasses.replace(bundle, folder=tmp_path / "b"), FakeTensorrt(device), device)
    assert not device._blocks


def test_plans_of_another_tensorrt_or_gpu_are_refused_with_the_remedy(bundle: Bundle, plain: Bundle) -> None:
    check_plan(bundle, "10.16.1.11", ORIN)
    with pytest.raises(BundleError, match=r"built for TensorRT 10.16.1.11 \(Orin\); here is 11.4.*on this device"):
        check_plan(bundle, "11.4.0.106", ORIN)
    hopper = DeviceFacts("NVIDIA H200", "9.0", 1 << 37, 1 << 36, "13.0")
    with pytest.raises(BundleError, match=r"compute capability 8.7 \(Orin\); here is 9.0 \(NVIDIA H200\)"):
        check_plan(bundle, "10.16.1.11", hopper)
    with pytest.raises(BundleError, match="no facts"):
        check_plan(plain, "10.16.1.11", ORIN)


def test_a_tensorrt_bundle_opens_through_the_table_of_engines(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = NumpyDevice()
    monkeypatch.setattr(trt_module, "open_tensorrt", lambda: FakeTensorrt(device))
    monkeypatch.setattr(trt_module, "device_facts", lambda: ORIN)
    monkeypatch.setattr(trt_module, "open_device", lambda kind: device)
    assert isinstance(open_backend(bundle), TrtBackend)


def test_without_a_driver_the_machine_is_told_what_it_lacks(bundle: Bundle) -> None:
    if driver_problem() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        open_trt(bundle)


def test_the_default_bundle_answers_alike_on_both_backends(tmp_path: Path) -> None:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    plain = plain_bundle(open_bundle("default"), tmp_path / "plain")
    planned = write_trt_bundle(tmp_path / "b", plain, 512)
    size = plain.settings.image_size
    images = np.random.default_rng(0).random((2, size, size), np.float32)
    said = []
    for session in (Session(plain, threads=1), Session(planned, backend=Rig(planned).backend)):
        for image in images:
            session.look(image)
            said += [session.ask_ids(canonical_prompt(task), 12) for task in ("caption", "detect")]
    for one, other in zip(said[:4], said[4:], strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, rtol=1e-4, atol=1e-5)
