"""The TensorRT engine on a device that is none: what it copies, pads, cuts, captures and frees. With a GPU, the same on
a real one."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_tensorrt import FakeGpu, compile_stub
from tiny_model import colour_model, random_model, tiny_bundle

from yolov9.engines import EngineError, Limits, SuppressingEngine, create
from yolov9.engines.tensorrt.cuda import Cuda
from yolov9.engines.tensorrt.engine import TensorRtEngine
from yolov9.engines.tensorrt.graph import engine_graph
from yolov9.engines.tensorrt.provide import NotBuilt, site
from yolov9.engines.tensorrt.runtime import Session, try_out
from yolov9.geometry import Letterbox
from yolov9.postprocess import PredictionError, postprocess

NAMES3 = ("a", "b", "c")
MAX_BATCH = 4


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    try:
        return compile_stub(tmp_path_factory.mktemp("stub"))
    except FileNotFoundError:
        pytest.skip("no C compiler (cc)")


@pytest.fixture(scope="module")
def random3(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "random", random_model(3), NAMES3)


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    """Fewer than 128x128 has boxes, and enough for 64x128."""
    monkeypatch.setattr("yolov9.engines.tensorrt.recipe.CANDIDATES", 12)


class House:
    """An engine on a fake GPU, with its cache."""

    def __init__(self, stub, folder, bundle, flavour="tensorrt", built=True):
        self.gpu = FakeGpu(stub, flavour)
        self.before = self.gpu.live
        self.where = site(
            bundle, precision="fp32", max_batch=MAX_BATCH, cache_dir=folder, api=self.gpu.api, cuda=self.gpu.cuda
        )
        if built:
            recipe = self.where.wanted
            self.where.cache.add(recipe, engine_graph(bundle, "fp32", recipe.candidates))

    def engine(self):
        return TensorRtEngine(self.where.bundle, build=False, where=self.where)


@pytest.fixture
def house(stub, tmp_path, random3):
    return House(stub, tmp_path, random3)


@pytest.fixture
def engine(house):
    made = house.engine()
    yield made
    made.close()


def pictures(count, height=64, width=128, seed=0):
    """What the random model makes something of: patches, not noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, height // 32, width // 32, 3), np.uint8)
    return list(small.repeat(32, 1).repeat(32, 2))


def reference(bundle, images):
    return create(bundle, "onnxruntime", "fp32").infer(images)


def expected(prediction, limit, height, width):
    return postprocess(
        prediction, Letterbox.fit(width, height, width, height), limit.confidence, limit.iou, limit.class_thresholds,
        max_detections=limit.max_detections,
    )  # fmt: skip


def clipped(found, height, width):
    found = found.copy()
    found[:, (0, 2)] = found[:, (0, 2)].clip(0, width)
    found[:, (1, 3)] = found[:, (1, 3)].clip(0, height)
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]


def test_it_is_what_it_says(engine):
    assert isinstance(engine, SuppressingEngine)
    assert (engine.name, engine.precision, engine.max_batch, engine.classes) == ("tensorrt", "fp32", MAX_BATCH, 3)
    assert engine.device == "Stub GPU (tensorrt 99.1)"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_predictions_are_those_of_the_graph_in_any_batch(engine, random3, count):
    """A bucket, a padded bucket, a batch that is cut."""
    images = pictures(count)
    found = engine.infer(images)
    assert found.shape == (count, 7, 8)
    np.testing.assert_allclose(found, reference(random3, images), atol=1e-5)


def test_results_stay_what_they_are(engine, random3):
    images = pictures(2)
    first = engine.infer(images[:1])
    kept = first.copy()
    engine.infer(images[1:])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_detections_are_those_of_the_host_with_each_pictures_own_limits(engine, random3, count):
    images = pictures(count, 128, 128)
    rows = reference(random3, images)
    limits = [
        Limits(0.3 + 0.05 * i, 0.2 + 0.1 * i, None if i % 2 else np.array([0.1, 2.0, 0.5], np.float32), 3 + i)
        for i in range(count)
    ]
    found = engine.detect(images, limits)
    assert sum(map(len, found)) > count
    for one, prediction, limit in zip(found, rows, limits, strict=True):
        np.testing.assert_allclose(clipped(one, 128, 128), expected(prediction, limit, 128, 128), atol=1e-4)


def test_more_candidates_than_the_device_takes_are_done_by_the_host(engine, random3, house):
    """128x128 has 16 boxes, all of which reach the threshold."""
    assert house.where.wanted.candidates == 12
    images = pictures(2, 128, 128)
    everything = Limits(0.0, 0.99)
    for one, prediction in zip(engine.detect(images, [everything] * 2), reference(random3, images), strict=True):
        wanted = expected(prediction, everything, 128, 128)
        assert len(wanted) > house.where.wanted.candidates
        np.testing.assert_allclose(one, wanted, atol=1e-4)


def broken(folder):
    """A bundle whose model gives NaN."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(random_model(3))
    weights = next(w for w in model.graph.initializer if w.name == "head")
    values = numpy_helper.to_array(weights).copy()
    values[1, 0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, "head"))
    return tiny_bundle(folder / "nan", model.SerializeToString(), NAMES3)


def test_nan_is_an_error_and_never_an_empty_scene(stub, tmp_path):
    house = House(stub, tmp_path / "cache", broken(tmp_path))
    engine = house.engine()
    with pytest.raises(PredictionError, match="NaN"):
        engine.detect(pictures(1), [Limits()])
    engine.close()


def test_a_new_engine_is_tried_out_before_it_is_kept(stub, house, tmp_path, random3):
    gpu, recipe = house.gpu, house.where.wanted
    assert try_out(gpu.api, gpu.cuda, recipe, engine_graph(random3, "fp32", recipe.candidates)) is None
    gpu.cuda.close()
    assert gpu.live == house.before
    portable = FakeGpu(stub, "tensorrt_rtx")
    assert try_out(portable.api, portable.cuda, recipe, engine_graph(random3, "fp32", recipe.candidates)) == b"compiled"
    portable.cuda.close()
    bad = broken(tmp_path)
    with pytest.raises(EngineError, match="gives NaN or infinity"):
        try_out(gpu.api, gpu.cuda, recipe, engine_graph(bad, "fp32", recipe.candidates))
    gpu.cuda.close()
    assert gpu.live == house.before


def test_each_shape_and_batch_is_captured_once_a_lane_and_then_launched(engine, house):
    engine.prepare(64, 128)
    assert [c.enqueued for c in house.gpu.contexts] == [2] * 6, "3 batches, 2 lanes: one to warm up, one captured"
    assert [c.runs for c in house.gpu.contexts] == [1] * 6, "what is captured is not run"
    before = house.gpu.launches
    for count in (1, 2, 3, 4):
        engine.infer(pictures(count))
    assert house.gpu.launches == before + 4
    assert len(house.gpu.contexts) == 6


def test_an_engine_that_cannot_be_captured_runs_without(house, random3):
    house.gpu.capturable = False
    engine = house.engine()
    images = pictures(3)
    before = house.gpu.launches
    np.testing.assert_allclose(engine.infer(images), reference(random3, images), atol=1e-5)
    assert house.gpu.launches == before
    engine.close()


def test_many_threads_get_their_own_results(engine, random3):
    engine.prepare(64, 128)
    images = pictures(40)
    rows = reference(random3, images)
    limit = Limits(0.2, 0.5)

    def both(i):
        raw = engine.infer([images[i]])[0]
        (found,) = engine.detect([images[i]], [limit])
        return raw, found

    with ThreadPoolExecutor(4) as pool:
        for (raw, found), prediction in zip(pool.map(both, range(40)), rows, strict=True):
            np.testing.assert_allclose(raw, prediction, atol=1e-5)
            np.testing.assert_allclose(clipped(found, 64, 128), expected(prediction, limit, 64, 128), atol=1e-4)


def test_a_shape_is_made_ready_while_another_runs(engine, random3):
    engine.prepare(64, 128)
    images = pictures(1)
    rows = reference(random3, images)
    with ThreadPoolExecutor(1) as pool:
        preparing = [pool.submit(engine.prepare, *shape) for shape in ((128, 128), (96, 128), (128, 96))]
        while not preparing[-1].done():
            np.testing.assert_allclose(engine.infer(images), rows, atol=1e-5)
        for one in preparing:
            one.result()


def test_a_shape_without_a_profile_is_refused_by_name(engine):
    with pytest.raises(EngineError, match=r"no profile for 512x512 \(it has 128x128, "):
        engine.prepare(512, 512)
    with pytest.raises(EngineError, match="no profile for 96x64"):
        engine.infer(pictures(1, 64, 96))
    with pytest.raises(EngineError, match="multiples of 32"):
        engine.prepare(50, 50)


def test_everything_is_given_back(house):
    engine = house.engine()
    engine.prepare(64, 128)
    engine.infer(pictures(3))
    assert house.gpu.live > house.before + 20
    engine.close()
    house.gpu.cuda.close()
    assert house.gpu.live == house.before


@pytest.mark.parametrize("function", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate"])
def test_a_start_that_fails_gives_everything_back_and_says_why(house, function):
    house.gpu.cuda.enter()
    before = house.gpu.live
    house.gpu.fail(function)
    with pytest.raises(EngineError, match=f"{function} failed: CUDA_ERROR_OUT_OF_MEMORY, out of memory"):
        house.engine()
    assert house.gpu.live == before


@pytest.mark.parametrize("function", ["cuGraphInstantiateWithFlags", "cuStreamEndCapture", "cuMemcpyHtoDAsync_v2"])
def test_a_shape_that_fails_can_be_tried_again(engine, house, random3, function):
    house.gpu.fail(function)
    with pytest.raises(EngineError, match=function):
        engine.prepare(64, 128)
    images = pictures(2)
    np.testing.assert_allclose(engine.infer(images), reference(random3, images), atol=1e-5)


def test_a_batch_that_fails_says_why_and_the_next_is_another_matter(engine, house, random3):
    house.gpu.failing = True
    with pytest.raises(EngineError, match="the inference failed: an illegal memory access"):
        engine.infer(pictures(1))
    house.gpu.failing = False
    engine.prepare(64, 128)
    house.gpu.fail("cuGraphLaunch", 700)
    with pytest.raises(EngineError, match="cuGraphLaunch failed: error 700"):
        engine.infer(pictures(1))
    images = pictures(1)
    np.testing.assert_allclose(engine.infer(images), reference(random3, images), atol=1e-5)


def test_a_serialised_engine_that_tensorrt_does_not_take_is_an_error(house):
    with pytest.raises(EngineError, match=r"cannot load the engine of tiny fp32 .*: the magic tag does not match"):
        Session(house.gpu.api, house.gpu.cuda, house.where.wanted, b"junk")


def test_without_an_engine_it_says_so_at_once(stub, tmp_path, random3):
    house = House(stub, tmp_path, random3, built=False)
    assert not house.where.built
    with pytest.raises(NotBuilt, match=r"no engine of tiny fp32 for tensorrt 99\.1"):
        house.engine()


def test_a_portable_engine_keeps_what_it_compiled(stub, tmp_path, random3):
    house = House(stub, tmp_path, random3, flavour="tensorrt_rtx")
    assert [recipe.target for recipe in house.where.recipes] == ["8.9", "any"]
    engine = house.engine()
    engine.prepare(64, 128)
    assert house.where.cache.kernels(house.where.wanted) == b"compiled"
    engine.close()
    house.gpu.kernels.append(b"more was compiled")
    again = house.engine()
    again.prepare(64, 128)
    assert house.where.cache.kernels(house.where.wanted) == b"more was compiled"
    again.close()


def test_an_engine_built_for_the_very_gpu_is_preferred(stub, tmp_path, random3):
    house = House(stub, tmp_path, random3, flavour="tensorrt_rtx", built=False)
    own, portable = house.where.recipes
    plan = engine_graph(random3, "fp32", own.candidates)
    house.where.cache.add(portable, plan)
    assert house.where.find()[0] == portable
    house.where.cache.add(own, plan)
    assert house.where.find()[0] == own


class TestCuda:
    def test_it_is_usable_in_a_thread_that_has_entered(self, stub):
        library = ctypes.CDLL(str(stub))
        cuda = Cuda(library=library)
        assert (cuda.name, cuda.capability) == ("Stub GPU", (8, 9))
        library.stub_forget_context()
        with pytest.raises(EngineError, match="cuMemAlloc_v2 failed: CUDA_ERROR_INVALID_CONTEXT"):
            cuda.allocate(16)
        problems = []

        def use():
            cuda.enter()
            try:
                cuda.free(cuda.allocate(16))
            except EngineError as error:
                problems.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert problems == []
        cuda.close()

    def test_a_copy_goes_there_and_back(self, stub):
        cuda = Cuda(library=ctypes.CDLL(str(stub)))
        cuda.enter()
        stream, event = cuda.stream(), cuda.event()
        memory, device = cuda.pinned(32), cuda.allocate(32)
        memory[:16] = range(16)
        cuda.to_device(device, memory[:16], stream)
        cuda.to_host(memory[16:], device, stream)
        cuda.wait(event, stream)
        assert list(memory[16:]) == list(range(16))
        with pytest.raises(EngineError, match="cuMemcpyDtoHAsync_v2"):
            cuda.to_host(memory, device + 1, stream)
        cuda.free(device)
        cuda.free_pinned(memory)
        cuda.destroy_event(event)
        cuda.destroy_stream(stream)
        cuda.close()

    def test_a_capture_that_fails_leaves_the_stream_usable(self, stub):
        cuda = Cuda(library=ctypes.CDLL(str(stub)))
        cuda.enter()
        before = cuda._library.stub_live()
        stream = cuda.stream()
        with pytest.raises(ZeroDivisionError), cuda.capture(stream):
            raise ZeroDivisionError
        cuda.synchronize(stream)
        with cuda.capture(stream) as captured:
            pass
        cuda.launch(captured[0], stream)
        cuda.destroy_graph(captured[0])
        cuda.destroy_stream(stream)
        assert cuda._library.stub_live() == before

    def test_a_device_that_is_not_there_and_a_driver_that_is_too_old(self, stub):
        with pytest.raises(EngineError, match=r"no CUDA device 3 \(1 can be seen\)"):
            Cuda(3, library=ctypes.CDLL(str(stub)))
        with pytest.raises(EngineError, match="the NVIDIA driver is too old: it has no cuInit"):
            Cuda(library=ctypes.CDLL(None))

    def test_without_a_driver_it_says_so(self, monkeypatch):
        monkeypatch.setattr("yolov9.engines.tensorrt.cuda.LIBRARY", "libcuda-that-is-not-there.so.1")
        with pytest.raises(EngineError, match="no NVIDIA driver here"):
            Cuda()


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def real(request, tmp_path_factory, random3):
    """On a real GPU, with whatever TensorRT there is; built into a folder of the test's."""
    folder = tmp_path_factory.mktemp("engines")
    try:
        where = site(random3, precision=request.param, max_batch=MAX_BATCH, cache_dir=folder)
    except EngineError as error:
        pytest.skip(str(error))
    made = TensorRtEngine(random3, where=where)
    yield made
    made.close()


@pytest.mark.gpu
class TestOnARealGpu:
    def test_it_agrees_with_onnxruntime(self, real, random3):
        tolerance = 1e-3 if real.precision == "fp32" else 2e-2
        for height, width in ((96, 128), (128, 128)):
            real.prepare(height, width)
            images = pictures(7, height, width)
            rows = reference(random3, images)
            for count in (1, 3, 7):
                np.testing.assert_allclose(real.infer(images[:count]), rows[:count], atol=tolerance)

    def test_detections_are_those_of_its_own_predictions(self, real):
        images = pictures(4, 128, 128)
        limits = [Limits(0.3 + 0.1 * i, 0.3 + 0.1 * i) for i in range(4)]
        rows = real.infer(images)
        for one, prediction, limit in zip(real.detect(images, limits), rows, limits, strict=True):
            np.testing.assert_allclose(clipped(one, 128, 128), expected(prediction, limit, 128, 128), atol=1e-3)

    def test_many_threads(self, real, random3):
        real.prepare(96, 128)
        images = pictures(32, 96, 128)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda image: real.infer([image])[0], images))
        np.testing.assert_allclose(np.stack(found), reference(random3, images), atol=2e-2)

    def test_half_precision_is_that_of_its_kernels(self, real):
        """The inspector names the kernels and the types of what goes through them."""
        inspector = real._session._engine.create_engine_inspector()
        text = inspector.get_engine_information(real._site.api.module.LayerInformationFormat.JSON)
        assert ("Half" in text or "FP16" in text) == (real.precision == "fp16")

    def test_the_real_detector_finds_what_there_is(self, tmp_path):
        bundle = tiny_bundle(tmp_path / "colours", colour_model())
        try:
            where = site(bundle, precision="fp32", max_batch=1, cache_dir=tmp_path)
        except EngineError as error:
            pytest.skip(str(error))
        image = np.full((128, 128, 3), 114, np.uint8)
        image[32:64, 64:96] = (255, 0, 0)
        (found,) = TensorRtEngine(bundle, where=where).detect([image], [Limits()])
        np.testing.assert_allclose(found, [[64, 32, 96, 64, 1, 0]], atol=1e-3)
