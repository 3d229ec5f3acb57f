"""Every engine gives the same predictions for a bundle, in any batch, shape and thread; the choice says why."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_model import colour_model, random_model, tiny_bundle

import yolov9.engines
from yolov9.engines import EngineError, choose, create, usual_shape
from yolov9.engines import cpu as cpu_module
from yolov9.engines.base import buckets

NAMES3 = ("a", "b", "c")
ONNX_ENGINES = [
    pytest.param("openvino"),
    pytest.param(
        "onnxruntime", marks=pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="no onnxruntime")
    ),
]


def pictures(count, height, width, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "colours")


@pytest.fixture(scope="module")
def random3(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "random", random_model(3), NAMES3)


@pytest.fixture(scope="module")
def gelan(tmp_path_factory):
    """A real architecture with random weights, exported by the project's own exporter."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from yolov9.export import export
    from yolov9.nn.model import build

    torch.manual_seed(0)
    model = build("gelan-t", NAMES3).eval()
    for module in model.modules():  # a fresh model's activations die out; these keep it lively
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.normal_(module.bias, std=0.2)
    return export(model, tmp_path_factory.mktemp("bundles") / "gelan", input_size=128, check=False)


@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_it_finds_what_there_is(colours, engine):
    image = np.full((64, 96, 3), 114, np.uint8)
    image[32:, 64:] = (255, 0, 0)
    image[:32, :32] = (0, 0, 255)
    made = create(colours, engine, "fp32")
    predictions = made.infer([image])
    assert predictions.shape == (1, 6, 6)
    assert predictions.dtype == np.float32
    assert predictions[0, :, 5] == pytest.approx([64, 32, 96, 64, 1, 0])
    assert predictions[0, :, 0] == pytest.approx([0, 0, 32, 32, 0, 1])
    assert predictions[0, 4:, 1:5].max() < 1e-6
    made.close()


def test_all_engines_agree_in_fp32_on_a_real_architecture(gelan):
    engines = [create(gelan, name, "fp32") for name in ("torch", "openvino")]
    if importlib.util.find_spec("onnxruntime"):
        engines.append(create(gelan, "onnxruntime", "fp32"))
    for height, width in ((96, 128), (128, 64)):
        images = pictures(2, height, width)
        reference, *others = [engine.infer(images).copy() for engine in engines]
        assert reference.shape == (2, 7, height * width * 21 // 1024)
        assert reference[:, 4:].std() > 1e-4  # scores differ from place to place: there is something to compare
        for other in others:
            assert np.abs(other[:, :4] - reference[:, :4]).max() < 0.02
            assert np.abs(other[:, 4:] - reference[:, 4:]).max() < 1e-4


def test_torch_in_bf16_decodes_boxes_in_fp32(gelan):
    images = pictures(1, 128, 128)
    exact, rough = (create(gelan, "torch", precision).infer(images) for precision in ("fp32", "bf16"))
    assert 0 < np.abs(exact[:, :4] - rough[:, :4]).max() < 8
    fractions = rough[:, :4] % 0.125  # bf16 above 32 knows steps of a quarter at best
    assert (fractions > 0).mean() > 0.5


def test_torch_takes_a_model_as_well_as_a_bundle(gelan):
    pytest.importorskip("torch")
    import yolov9
    from yolov9.engines.torch import TorchEngine

    model = yolov9.load(gelan.safetensors).train()
    images = pictures(2, 96, 128)
    assert np.allclose(TorchEngine(model).infer(images), create(gelan, "torch").infer(images), atol=1e-5)
    assert model.training, "the caller's model is left as it was"


@pytest.mark.gpu
def test_torch_on_cuda_agrees_with_the_cpu(gelan):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from yolov9.engines.torch import TorchEngine

    images = pictures(5, 96, 128)
    reference = TorchEngine(gelan, device="cpu").infer(images)
    single = TorchEngine(gelan, device="cuda", precision="fp32", max_batch=4)
    half = TorchEngine(gelan, device="cuda", max_batch=4)
    assert half.precision == "fp16"
    for engine, box, score in ((single, 0.1, 1e-3), (half, 1.0, 1e-2)):
        engine.prepare(96, 128)
        for count in (1, 3, 5):  # a bucket, a padded bucket, a cut batch
            found = engine.infer(images[:count])
            assert np.abs(found[:, :4] - reference[:count, :4]).max() < box
            assert np.abs(found[:, 4:] - reference[:count, 4:]).max() < score


@pytest.mark.gpu
def test_cuda_captures_a_shape_while_another_runs(gelan):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from yolov9.engines.torch import TorchEngine

    engine = TorchEngine(gelan, device="cuda", max_batch=1)
    engine.prepare(96, 128)
    image = pictures(1, 96, 128)
    expected = engine.infer(image).copy()
    with ThreadPoolExecutor(1) as pool:
        preparing = pool.submit(engine.prepare, 128, 128)
        while not preparing.done():
            assert np.array_equal(engine.infer(image), expected)
        preparing.result()


@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_a_batch_gives_what_single_images_give(random3, engine):
    images = pictures(7, 64, 96)
    single = create(random3, engine, "fp32")
    expected = np.concatenate([single.infer([image]).copy() for image in images])
    for max_batch in (2, 6):
        made = create(random3, engine, "fp32", max_batch=max_batch)
        assert made.max_batch == max_batch
        for count in (1, 2, 3, 7):
            found = made.infer(images[:count])
            assert found.shape == (count, 7, 6)
            assert np.allclose(found, expected[:count], atol=1e-4)


def test_batch_sizes_that_are_made_ready():
    assert [buckets(n) for n in (1, 2, 3, 4, 6, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_many_threads_get_their_own_results(random3, engine):
    made = create(random3, engine, "fp32", mode="throughput", threads=2)
    assert made.parallel >= 1
    made.prepare(64, 96)
    images = pictures(64, 64, 96)
    expected = [made.infer([image])[0].copy() for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: made.infer([image])[0].copy(), images * 4))
    assert all(np.allclose(f, e, atol=1e-5) for f, e in zip(found, expected * 4, strict=True))


def test_other_shapes_run_while_one_is_made_ready(random3):
    made = create(random3, "openvino", "fp32")
    image = pictures(1, 64, 96)
    expected = made.infer(image).copy()
    with ThreadPoolExecutor(1) as pool:
        preparing = [pool.submit(made.prepare, 32 * i, 32 * j) for i in range(1, 5) for j in range(1, 5)]
        while not preparing[-1].done():
            assert np.allclose(made.infer(image), expected, atol=1e-5)
        for future in preparing:
            future.result()


@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_python_goes_on_while_the_engine_works(tmp_path, engine):
    """The GIL is free during an inference: another thread counts all through it."""
    made = create(tiny_bundle(tmp_path / "wide", random_model(3, width=64), NAMES3), engine, "fp32", threads=1)
    images = pictures(1, 1024, 1024)
    made.infer(images)
    ticks = 0
    stop = threading.Event()

    def tick():
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    switch = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(60)  # no thread is ever asked to give way: only a released lock lets the other run
        before = ticks
        for _ in range(5):
            made.infer(images)
        during = ticks - before
    finally:
        sys.setswitchinterval(switch)
        stop.set()
        thread.join()
    assert during >= 5


@pytest.mark.parametrize("engine", ONNX_ENGINES)
def test_pictures_are_read_wherever_and_however_they_lie(random3, engine):
    made = create(random3, engine, "fp32")
    (image,) = pictures(1, 64, 96)
    expected = made.infer([image]).copy()
    read_only = image.copy()
    read_only.flags.writeable = False
    odd = np.frombuffer(bytearray(image.nbytes + 1), np.uint8)[1:].reshape(image.shape)
    odd[...] = image
    for other in (read_only, odd, np.asfortranarray(image), image[::-1].copy()[::-1]):
        assert np.allclose(made.infer([other]), expected, atol=1e-5)


@pytest.mark.parametrize("engine", ONNX_ENGINES)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "empty batch"),
        ([np.zeros((64, 64), np.uint8)], r"\(64, 64\)"),
        ([np.zeros((64, 64, 3), np.float32)], "float32"),
        ([np.zeros((64, 60, 3), np.uint8)], "60x64"),
        ([np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)], "in one batch"),
    ],
)
def test_a_batch_that_is_none_is_refused(random3, engine, images, message):
    with pytest.raises(EngineError, match=message):
        create(random3, engine).infer(images)


def test_compiled_models_are_kept(random3, tmp_path):
    create(random3, "openvino", cache_dir=tmp_path / "cache").close()
    assert list((tmp_path / "cache").glob("*.blob"))


def test_openvino_uses_its_own_files_if_the_bundle_has_some(tmp_path):
    import openvino as ov

    (tmp_path / "m.onnx").write_bytes(colour_model())
    ov.save_model(ov.Core().read_model(tmp_path / "m.onnx"), tmp_path / "m.xml", compress_to_fp16=False)
    files = {f"openvino/model.{s}": (tmp_path / f"m.{s}").read_bytes() for s in ("xml", "bin")}
    bundle = tiny_bundle(tmp_path / "both", random_model(2), extra=files)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert create(bundle, "openvino", "fp32").infer([red])[0, 4:, 0] == pytest.approx([1, 0])
    broken = tiny_bundle(tmp_path / "broken", extra={"openvino/model.xml": b"<net/>", "openvino/model.bin": b"1"})
    with pytest.raises(EngineError, match=r"model\.xml"):
        create(broken, "openvino")
    alone = tiny_bundle(tmp_path / "alone", extra={"openvino/model.xml": files["openvino/model.xml"]})
    with pytest.raises(EngineError, match=r"model\.bin is not listed"):
        create(alone, "openvino")


class TestChoice:
    @pytest.fixture(autouse=True)
    def _no_gpu(self, monkeypatch):
        monkeypatch.setattr(yolov9.engines, "_NVIDIA", ())

    def test_auto_takes_the_first_and_says_why(self, colours):
        choice = choose(colours, precision="fp32")
        assert choice.engine.name == "openvino"
        assert choice.why == "openvino fp32: the fastest that works here (no NVIDIA GPU)"

    def test_auto_goes_on_and_says_what_was_wrong(self, colours, monkeypatch):
        pytest.importorskip("onnxruntime")
        monkeypatch.setitem(sys.modules, "yolov9.engines.openvino", None)  # as if it could not be imported
        choice = choose(colours)
        assert choice.engine.name == "onnxruntime"
        assert "openvino: not installed, or broken" in choice.why

    def test_auto_prefers_a_gpu_where_there_is_one(self, colours, monkeypatch, tmp_path):
        monkeypatch.setattr(yolov9.engines, "_NVIDIA", (tmp_path,))
        monkeypatch.setitem(sys.modules, "yolov9.engines.torch", None)
        choice = choose(colours)
        assert choice.engine.name == "openvino"
        assert "torch on the GPU: not installed" in choice.why

    def test_on_a_gpu_tensorrt_comes_first_but_is_never_built_unasked(self, colours, monkeypatch, tmp_path):
        from yolov9.engines.tensorrt import engine as tensorrt
        from yolov9.engines.tensorrt.provide import NotBuilt

        asked = []

        def make(bundle, **options):
            asked.append(options)
            if not options.get("build", True):
                raise NotBuilt("there is no engine yet")
            return create(bundle, "openvino", "fp32")

        monkeypatch.setattr(yolov9.engines, "_NVIDIA", (tmp_path,))
        monkeypatch.setitem(sys.modules, "yolov9.engines.torch", None)
        monkeypatch.setattr(tensorrt, "TensorRtEngine", make)
        choice = choose(colours)
        assert choice.engine.name == "openvino"
        assert "(tensorrt: there is no engine yet; torch on the GPU: " in choice.why
        choose(colours, "tensorrt", "fp16", max_batch=3, cache_dir=tmp_path)
        assert (asked[-1]["precision"], asked[-1]["max_batch"], asked[-1]["cache_dir"]) == ("fp16", 3, tmp_path)
        assert "build" not in asked[-1], "asked for by name it is built"
        with pytest.raises(EngineError, match=r"tensorrt: there is no engine yet.*torch on the GPU: not installed"):
            choose(colours, device="cuda:1")
        assert (asked[-1]["device"], asked[-1]["build"]) == ("cuda:1", False)

    def test_tensorrt_by_name_says_what_is_missing(self, colours):
        from yolov9.engines.tensorrt.cuda import LIBRARY

        try:
            ctypes.CDLL(LIBRARY)
        except OSError:
            with pytest.raises(EngineError, match=f"no NVIDIA driver here: {LIBRARY}"):
                choose(colours, "tensorrt")
        with pytest.raises(EngineError, match="tensorrt: does not run on the device 'cpu'"):
            choose(colours, "tensorrt", device="cpu")

    def test_when_nothing_works_every_reason_is_given(self, colours, monkeypatch):
        for name in ("openvino", "onnxruntime", "torch"):
            monkeypatch.setitem(sys.modules, f"yolov9.engines.{name}", None)
        with pytest.raises(EngineError, match=r"openvino: not installed.*onnxruntime: not installed.*torch: not"):
            choose(colours)

    def test_a_named_engine_is_taken_or_refused(self, colours):
        assert choose(colours, "openvino", "fp32").why == "openvino fp32: asked for by name"
        with pytest.raises(EngineError, match="unknown engine 'tensorflow'"):
            choose(colours, "tensorflow")

    def test_what_comes_back_has_run(self, colours, monkeypatch):
        from yolov9.engines.openvino import OpenVinoEngine

        prepared = []
        monkeypatch.setattr(OpenVinoEngine, "prepare", lambda self, *shape: prepared.append(shape))
        choose(colours, "openvino")
        assert prepared == [usual_shape(colours)] == [(96, 128)]

    @pytest.mark.parametrize("engine", ONNX_ENGINES)
    @pytest.mark.parametrize("precision", ["int8", "fp4"])
    def test_a_precision_that_cannot_be_had_is_refused(self, colours, engine, precision):
        with pytest.raises(EngineError, match=precision):
            choose(colours, engine, precision)

    def test_a_quantised_bundle_runs_in_int8_only(self, tmp_path):
        bundle = tiny_bundle(tmp_path / "q", precision="int8")
        assert choose(bundle, "openvino").engine.precision == "int8"
        with pytest.raises(EngineError, match="bf16 was asked for, but the bundle is int8"):
            choose(bundle, "openvino", "bf16")

    def test_openvino_states_what_the_cpu_can(self, colours):
        import openvino as ov

        capable = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert choose(colours, "openvino").engine.precision == ("bf16" if capable else "fp32")

    def test_torch_needs_weights(self, colours):
        pytest.importorskip("torch")
        with pytest.raises(EngineError, match=r"no model\.safetensors"):
            choose(colours, "torch")

    def test_an_unknown_provider_is_refused(self, colours):
        pytest.importorskip("onnxruntime")
        from yolov9.engines.onnxruntime import OnnxRuntimeEngine

        with pytest.raises(EngineError, match="no provider 'Toaster'"):
            OnnxRuntimeEngine(colours, providers=["Toaster"])
        assert OnnxRuntimeEngine(colours, providers=["CPUExecutionProvider"]).device == "CPU"


def test_importing_the_inference_side_loads_no_engine():
    code = (
        "import sys, yolov9, yolov9.engines, yolov9.bundle, yolov9.letterbox, yolov9.postprocess, yolov9.predict\n"
        "print([m for m in ('torch', 'openvino', 'onnxruntime', 'onnx', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


class TestCpus:
    def test_the_quota_of_the_control_group_counts(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cpu_module.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
        monkeypatch.setattr(cpu_module.os, "cpu_count", lambda: 64)
        file = tmp_path / "cpu.max"
        monkeypatch.setattr(cpu_module, "_CGROUP_V2", file)
        monkeypatch.setattr(cpu_module, "_CGROUP_V1", (tmp_path / "none", tmp_path / "none"))
        for text, cpus in (("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)):
            file.write_text(text)
            assert cpu_module.available_cpus() == cpus
            assert cpu_module.limited() == (cpus < 64)
        file.unlink()
        assert cpu_module.available_cpus() == 64

    def test_the_older_control_groups_count_too(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cpu_module.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        monkeypatch.setattr(cpu_module, "_CGROUP_V2", tmp_path / "none")
        quota, period = tmp_path / "quota", tmp_path / "period"
        monkeypatch.setattr(cpu_module, "_CGROUP_V1", (quota, period))
        period.write_text("100000\n")
        for text, cpus in (("-1\n", 8), ("300000\n", 3)):
            quota.write_text(text)
            assert cpu_module.available_cpus() == cpus
