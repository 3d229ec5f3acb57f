"""Engines built by the real TensorRT for RTX, on a machine without a GPU: everything up to the serialised engine."""

from __future__ import annotations

import dataclasses
import threading
import warnings

import pytest
from onnx import TensorProto, helper
from test_tensorrt_graph import int8_bundle, quantise
from tiny_model import random_model, tiny_bundle

from yolov9.engines import EngineError
from yolov9.engines.tensorrt import api as api_module
from yolov9.engines.tensorrt.api import Messages, load
from yolov9.engines.tensorrt.build import BuildCancelled, Options, Phases, build, check_precision, parse
from yolov9.engines.tensorrt.cache import read
from yolov9.engines.tensorrt.graph import engine_graph
from yolov9.engines.tensorrt.provide import build_engine
from yolov9.engines.tensorrt.recipe import recipe

NAMES3 = ("a", "b", "c")


@pytest.fixture(scope="module")
def api():
    pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx-cu13")
    return load("tensorrt_rtx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Both graphs, plain and quantised."""
    folder = tmp_path_factory.mktemp("bundle")
    return int8_bundle(folder / "tiny", quantise(folder, ActivationSymmetric=True, WeightSymmetric=True))


def made(api, bundle, precision="fp16", shapes=((64, 128), (128, 128)), max_batch=4, options=None):
    wanted = recipe(bundle, api, "any", precision=precision, shapes=shapes, max_batch=max_batch)
    return build(api, engine_graph(bundle, precision, wanted.candidates), wanted, options or Options())


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "FLOAT"), ("fp16", "HALF"), ("int8", "HALF")])
def test_an_engine_is_built_in_the_precision_of_its_graph(api, bundle, precision, kind):
    built = made(api, bundle, precision)
    assert len(built.plan) > 10_000
    assert built.timing_cache is None, "this flavour measures nothing"
    assert built.layers[f"CONVOLUTION {kind}"] == 6
    assert sum(count for name, count in built.layers.items() if name.startswith("CONVOLUTION")) == 6
    assert (built.layers["QUANTIZE INT8"] > 6) == (precision == "int8")
    assert built.layers["TOPK FLOAT"] == 2
    assert built.layers["MATRIX_MULTIPLY HALF"] == 8, "suppression is part of it"


def test_each_shape_has_a_profile_for_every_batch_up_to_the_largest(api, bundle, monkeypatch):
    profiles = []
    original = api.module.IOptimizationProfile.set_shape

    def set_shape(self, name, low, best, high):
        profiles.append((name, low, best, high))
        return original(self, name, low, best, high)

    monkeypatch.setattr(api.module.IOptimizationProfile, "set_shape", set_shape)
    made(api, bundle, max_batch=3)
    assert [one for one in profiles if one[0] == "images"] == [
        ("images", (1, 64, 128, 3), (3, 64, 128, 3), (3, 64, 128, 3)),
        ("images", (1, 128, 128, 3), (3, 128, 128, 3), (3, 128, 128, 3)),
    ]
    assert ("minimum", (1, 3), (3, 3), (3, 3)) in profiles
    assert ("share", (1, 1), (3, 1), (3, 1)) in profiles


def test_the_head_of_a_real_architecture_decodes_in_single_precision(api, tmp_path):
    torch = pytest.importorskip("torch")
    from yolov9.export import to_onnx
    from yolov9.nn.model import build as build_model

    torch.manual_seed(0)
    graph = to_onnx(build_model("gelan-t", NAMES3).eval().fuse(), {})
    layers = parse(api, engine_graph(tiny_bundle(tmp_path / "t", graph, NAMES3), "fp16", 512)).layers
    assert (layers["CONVOLUTION HALF"], layers["CONVOLUTION FLOAT"]) == (185, 0)
    assert (layers["SOFTMAX FLOAT"], layers["SOFTMAX HALF"]) == (1, 0), "distances"
    assert layers["ACTIVATION FLOAT"] == 1, "the scores' sigmoid; all others are half of SiLU"
    assert layers["ACTIVATION HALF"] == 179


def test_a_graph_is_never_called_what_it_is_not(api, bundle):
    wanted = recipe(bundle, api, "any", precision="fp16", shapes=((64, 128),))
    graph = engine_graph(bundle, "fp32", wanted.candidates)
    with pytest.raises(EngineError, match="the graph is not fp16: 0 convolutions in half precision, 6 in single"):
        build(api, graph, wanted)
    from collections import Counter

    mixed = Counter({"CONVOLUTION HALF": 5, "CONVOLUTION FLOAT": 1})
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(EngineError, match=f"not {precision}"):
            check_precision(precision, mixed)


def test_an_operator_that_tensorrt_does_not_know_is_named(api, bundle):
    graph = helper.make_graph(
        [helper.make_node("Multinomial", ["x"], ["y"], name="dice", sample_size=3)], "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot read the graph: node 'dice' \(Multinomial\): "):
        build(api, model.SerializeToString(), recipe(bundle, api, "any"))


def test_junk_is_an_error_of_one_line(api, bundle):
    with pytest.raises(EngineError, match="cannot read the graph") as caught:
        build(api, b"junk", recipe(bundle, api, "any"))
    assert "\n" not in str(caught.value)


def test_too_little_scratch_memory_is_explained(api, bundle):
    with pytest.raises(EngineError, match=r"cannot build tiny fp16 .*: .*workspace"):
        made(api, bundle, shapes=((640, 640),), max_batch=16, options=Options(workspace=1 << 10))


def test_progress_is_told_and_never_goes_back(api, bundle):
    told = []
    made(api, bundle, options=Options(progress=lambda share, what: told.append((share, what))))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] < 0.3
    assert 0.8 < shares[-1] <= 1
    assert all(what for _, what in told)


def test_a_build_can_be_cancelled_half_way(api, bundle):
    cancelled = threading.Event()
    shares = []

    def progress(share, what):
        shares.append(share)
        if share > 0.3:
            cancelled.set()

    with pytest.raises(BuildCancelled, match=r"building tiny fp16 .* was cancelled"):
        made(
            api, bundle, shapes=((64, 128), (96, 128), (128, 128)),
            options=Options(progress=progress, cancelled=cancelled),
        )  # fmt: skip
    assert shares[-1] < 0.9, "and does not go on until it is done"


def test_a_flavour_that_measures_keeps_what_it_measured(api, bundle):
    """The calls are real, though this flavour has nothing to keep; a cache that is damaged is begun anew."""
    measuring = dataclasses.replace(api, flavour="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        first = made(measuring, bundle, shapes=((64, 128),))
        assert first.timing_cache
        second = made(measuring, bundle, shapes=((64, 128),), options=Options(timing_cache=first.timing_cache))
        assert second.timing_cache
        assert made(measuring, bundle, shapes=((64, 128),), options=Options(timing_cache=b"junk")).timing_cache


class TestTargets:
    def test_one_may_be_named(self, api, bundle):
        for capability in ((8, 9), (12, 0), (7, 5)):
            assert made(api, bundle, shapes=((64, 128),), options=Options(capability=capability)).plan

    def test_what_there_is_not_is_refused_with_what_there_is(self, api, bundle):
        with pytest.raises(EngineError, match=r"no target for compute capability 9\.0 \(it has 7\.5, 8\.0, .*12\.0"):
            made(api, bundle, options=Options(capability=(9, 0)))

    def test_the_other_flavour_builds_for_the_gpu_at_hand_only(self, api, bundle):
        with pytest.raises(EngineError, match="for the GPU at hand only"):
            made(dataclasses.replace(api, flavour="tensorrt"), bundle, options=Options(capability=(8, 9)))


class TestBuildEngine:
    def test_into_a_folder_under_the_name_that_is_looked_for(self, api, bundle, tmp_path):
        lines = []
        path = build_engine(
            bundle, tmp_path / "engines", precision="fp16", shapes=[(64, 128)], max_batch=2, say=lines.append
        )
        recipe_, plan = read(path)
        assert path.name == recipe_.file
        assert (recipe_.precision, recipe_.shapes, recipe_.max_batch) == ("fp16", ((64, 128),), 2)
        assert (recipe_.target, recipe_.flavour, recipe_.version) == ("any", "tensorrt_rtx", api.version)
        assert len(plan) > 10_000
        assert "fp16, 1 shapes, batches of 1 to 2, for compute capability 8.0 and later" in lines[0]
        assert lines[-1].startswith("built in ")
        assert str(path) in lines[-1]

    def test_into_a_file_for_one_target_in_the_precision_that_pays(self, api, bundle, tmp_path):
        path = build_engine(bundle, tmp_path / "x.engine", shapes=[(64, 128)], max_batch=1, target="8.9")
        assert path == tmp_path / "x.engine"
        assert (read(path).recipe.target, read(path).recipe.precision) == ("8.9", "int8")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target": "9.0"}, "no target for compute capability 9.0"),
            ({"target": "fast"}, "target 'fast' is not a compute capability such as 8.9"),
            ({"precision": "bf16"}, "tensorrt: no bf16"),
            ({"shapes": [(50, 64)]}, "not multiples of 32"),
            ({"max_batch": 0}, "a largest batch of 0"),
        ],
    )
    def test_what_cannot_be_is_refused_at_once(self, api, bundle, tmp_path, options, message):
        with pytest.raises(EngineError, match=message):
            build_engine(bundle, tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_int8_needs_a_quantised_graph(self, api, tmp_path):
        plain = tiny_bundle(tmp_path / "plain", random_model(3), NAMES3)
        with pytest.raises(EngineError, match=r"int8 was asked for, but .*plain has no int8\.onnx"):
            build_engine(plain, tmp_path / "out", precision="int8")
        quantised = tiny_bundle(tmp_path / "q", random_model(3), NAMES3, precision="int8")
        with pytest.raises(EngineError, match="fp16 was asked for, but the bundle is int8"):
            build_engine(quantised, tmp_path / "out", precision="fp16")


class TestPhases:
    def test_the_share_is_that_of_the_long_phase_with_what_is_open_inside(self):
        phases = Phases()
        phases.start("Building engine", None, 6)
        assert not phases.step("Building engine", 0)
        phases.start("Computing profile costs", "Building engine", 4)
        phases.start("Timing", "Computing profile costs", 10)
        assert phases.step("Timing", 4)
        assert phases.share == pytest.approx(0.125)
        assert not phases.step("Timing", 4), "not worth telling twice"
        phases.finish("Timing")
        assert phases.step("Computing profile costs", 1)
        assert phases.share == pytest.approx(0.5)
        phases.step("Unheard of", 3)
        phases.start("Computing profile costs", "Building engine", 4)
        phases.step("Computing profile costs", 0)
        assert phases.share == pytest.approx(0.5), "never back"


class TestApi:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        api_module.load.cache_clear()
        yield
        api_module.load.cache_clear()

    def test_it_states_which_it_is(self, api):
        assert str(load("tensorrt_rtx")) == f"tensorrt_rtx {api.module.__version__}"
        assert (api.portable, api.times_tactics) == (True, False)
        assert load("tensorrt_rtx") is load("tensorrt_rtx"), "TensorRT keeps its logger for good"

    def test_without_either_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(api_module, "_PACKAGES", {"tensorrt_none": "tensorrt", "tensorrt_nil": "tensorrt-rtx"})
        with pytest.raises(EngineError) as caught:
            load()
        assert "tensorrt_none is not installed (pip install 'yolov9-server[tensorrt]')" in str(caught.value)
        assert "yolov9-server[tensorrt-rtx]" in str(caught.value)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "raise OSError('libnvinfer.so.10: cannot open\\n shared object')",
                "cannot be imported: libnvinfer.so.10: ",
            ),
            ("import there_is_no_such_module", "cannot be imported: No module named 'there_is_no_such_module'"),
            ("__version__ = '8.6.1'", "tensorrt 8.6.1 is too old: 10.3 or later is needed"),
            ("", "cannot be imported: module 'tensorrt' has no attribute '__version__'"),
        ],
    )
    def test_one_that_is_broken_or_old_says_so_in_a_line(self, tmp_path, monkeypatch, source, message):
        import sys

        (tmp_path / "tensorrt.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        with pytest.raises(EngineError) as caught:
            load("tensorrt")
        sys.modules.pop("tensorrt", None)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_gpus_that_a_flavour_does_not_serve(self, api):
        for capability in ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)):
            assert api.supports(capability) is None
        for capability in ((7, 0), (9, 0), (10, 0)):
            assert "no kernels for compute capability" in api.supports(capability)
            assert dataclasses.replace(api, flavour="tensorrt").supports(capability) is None

    def test_messages_are_told_once_and_errors_kept(self, caplog):
        messages = Messages()
        with caplog.at_level("INFO", "yolov9.engines.tensorrt"):
            for _ in range(3):
                messages.add(20, "converting\n  scales")
            messages.add(40, "first")
            messages.add(40, "second")
            messages.add(10, "chatter")
        assert [record.message for record in caplog.records] == ["converting scales", "first", "second"]
        assert messages.why() == "first; second"
        assert messages.why() == "it gave no reason", "the next failure has reasons of its own"
        messages.add(40, "third")
        messages.clear()
        assert messages.why() == "it gave no reason"


def test_nothing_is_imported_before_it_is_needed():
    import subprocess
    import sys

    code = (
        "import sys, yolov9.engines.tensorrt.engine, yolov9.engines.tensorrt.background\n"
        "print([m for m in ('tensorrt', 'tensorrt_rtx', 'onnx', 'torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
