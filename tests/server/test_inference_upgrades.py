"""A faster engine is built while another serves: the change at a batch's border, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_inference_worker import HEIGHT, WIDTH, Bench, boxes, frame

import yolov9.engines
from server.inference import loading, protocol
from server.inference.client import Worker
from server.inference.config import WorkerConfig
from server.inference.loading import Loaded
from server.inference.protocol import Done, Hello, Infer, Prepare, Prepared, Switched, Upgrade
from server.inference.ways import Ways
from server.testing.engines import BAD_HEIGHT, BOX, FACTORY, Behaviour, FakeEngine, fake_bundle, mark
from yolov9.engines import Choice, EngineError
from yolov9.engines.tensorrt.provide import NotBuilt


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the fake builder looks for what it builds."""
    return tmp_path / "built"


@pytest.fixture
def bench(file: Path) -> Iterator[Bench]:
    """A worker that has said Hello and that an upgrade is being built."""
    made = Bench(upgrade=str(file), max_batch=4)
    assert isinstance(made.receive(), Hello)
    made.attach()
    for progress in (0.0, 0.5):
        building = made.receive()
        assert isinstance(building, Upgrade)
        assert (building.engine, building.precision, building.state) == ("faster", "fp16", "building")
        assert building.progress == progress
    yield made
    made.close()


def build(file: Path, wrong: str = "") -> None:
    """Let the fake builder end."""
    whole = file.with_suffix(".part")
    whole.write_text(wrong)
    whole.rename(file)


def confidence(done: Done) -> float:
    return float(boxes(done)[0, 4])


def test_the_old_engine_serves_until_the_new_one_is_there(bench: Bench, file: Path) -> None:
    mark(bench.image(), confidence=102)
    assert confidence(bench.infer(frame())) == pytest.approx(0.4)
    build(file)
    switched = bench.receive()
    assert switched == Switched(
        "faster", "fp16", "none", "faster fp16: it has been built while fake served", parallel=2, max_batch=8
    )
    assert confidence(bench.infer(frame())) == pytest.approx(0.8), "the new one answers"


def test_under_load_no_batch_is_lost_and_the_change_is_at_a_batchs_border(file: Path) -> None:
    bench = Bench(upgrade=str(file), seconds=0.005, parallel=2)
    assert isinstance(bench.receive(), Hello)
    bench.attach()
    mark(bench.image(), confidence=102)
    sent, found, switched = 0, [], False
    while len(found) < 60:
        while sent < 60 and sent - len(found) < 5:
            bench.send(Infer(sent, HEIGHT, WIDTH, [frame()] * 2))
            sent += 1
        reply = bench.receive()
        if isinstance(reply, Done):
            assert reply.error is None
            assert confidence(reply) == pytest.approx(float(boxes(reply, 1)[0, 4])), "one engine for a batch"
            found.append(round(confidence(reply), 3))
            if len(found) == 20:
                build(file)
        switched |= isinstance(reply, Switched)
    assert switched
    assert set(found) == {0.4, 0.8}
    assert found[0] == 0.4
    assert found[-1] == 0.8
    bench.close()


def test_every_shape_that_was_prepared_is_so_for_the_new_one(bench: Bench, file: Path) -> None:
    bench.send(Prepare(640, 640))
    assert isinstance(bench.receive(), Prepared)
    build(file)
    assert isinstance(bench.receive(), Switched)
    mark(bench.image(height=640), confidence=102)
    assert confidence(bench.infer(frame(), height=640)) == pytest.approx(0.8)
    bench.send(Prepare(480, 640))
    assert isinstance(bench.receive(), Prepared)
    assert bench.infer(frame(), height=480).error is None
    assert "has not been prepared" in (bench.infer(frame(), height=BAD_HEIGHT).error or "")


@pytest.mark.parametrize("wrong", ["build", "make", "prepare"])
def test_what_goes_wrong_is_said_and_the_old_engine_goes_on(
    bench: Bench, file: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    build(file, wrong)
    failed = bench.receive()
    assert failed == Upgrade("faster", "fp16", "failed", 0.5, f"the fake upgrade was told to fail ({wrong})")
    mark(bench.image(), confidence=102)
    assert confidence(bench.infer(frame())) == pytest.approx(0.4)
    assert "upgrade engine=faster fp16 state=failed" in caplog.text


def test_what_is_logged(bench: Bench, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "yolov9.inference"):
        build(file)
        bench.receive()
    lines = [record.message for record in caplog.records if record.message.startswith("upgrade")]
    assert lines[0].startswith("upgrade engine=faster fp16 state=built seconds=")
    assert lines[1] == "upgrade engine=faster fp16 state=running faster fp16: it has been built while fake served"


def test_the_new_engine_suppresses_by_each_frames_own_limits(bench: Bench, file: Path) -> None:
    build(file)
    assert isinstance(bench.receive(), Switched)
    mark(bench.image(0), class_id=2, confidence=51)
    mark(bench.image(1), Behaviour.CROWD)
    thresholds = np.array([2.0, 2.0, 0.5, 2.0], np.float32).tobytes()
    done = bench.infer(
        frame(0), frame(0, confidence=0.5), frame(1, max_detections=5), frame(0, class_thresholds=thresholds),
    )  # fmt: skip
    (found,) = boxes(done, 0)
    x1, y1, x2, y2 = BOX
    np.testing.assert_allclose(found, [x1 * 2, (y1 - 12) * 2, x2 * 2, (y2 - 12) * 2, 0.4, 2], rtol=1e-6)
    assert [len(boxes(done, i)) for i in (1, 2, 3)] == [0, 5, 0]
    wrong = bench.infer(frame(0, class_thresholds=np.zeros(3, np.float32).tobytes()))
    assert (wrong.error, wrong.engine_failed) == ("3 class thresholds for a model of 4 classes", False)
    mark(bench.image(0), Behaviour.NAN)
    broken = bench.infer(frame(0))
    assert "NaN" in (broken.error or "")
    assert broken.engine_failed


def test_the_end_of_the_worker_does_not_wait_for_the_builder(bench: Bench) -> None:
    began = time.monotonic()
    bench.send(protocol.Stop())
    bench.thread.join(20)
    assert bench.ended is True
    assert time.monotonic() - began < 1


class TestWays:
    """Without a worker around them."""

    def ways(self, upgrade: loading.Upgrade, throughput: Any = None) -> tuple[Ways, FakeEngine, list[protocol.Reply]]:
        from server.testing.engines import FakeSettings

        said: list[protocol.Reply] = []
        old = FakeEngine(FakeSettings())
        loaded = Loaded(old, "", (HEIGHT, WIDTH), throughput, upgrade)
        return Ways(loaded, said.append, lambda n: None, lambda engine: engine.max_batch), old, said

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def test_the_old_engine_is_closed_when_its_last_batch_has_left(self) -> None:
        from server.testing.engines import FakeSettings

        new = FakeEngine(FakeSettings())
        ways, old, said = self.ways(loading.Upgrade("x", "fp16", lambda *_: None, lambda: new))
        with ways.use((HEIGHT, WIDTH)) as first, ways.use((HEIGHT, WIDTH)):
            assert first is not None
            ways.begin_upgrade()
            self.until(lambda: any(isinstance(reply, Switched) for reply in said))
            with ways.use((HEIGHT, WIDTH)) as way:
                assert way is not None
                assert way.engine is new
            assert first.engine is old
            assert not old.closed
        assert old.closed
        assert not new.closed
        assert ways.stop(5)
        ways.close()
        assert new.closed

    def test_one_that_cannot_do_what_the_old_one_can_is_closed_and_not_used(self) -> None:
        from server.testing.engines import FakeSettings

        new = FakeEngine(FakeSettings())
        new.infer = lambda images: np.full((len(images), 8, 4), np.nan, np.float32)  # type: ignore[method-assign]
        ways, old, said = self.ways(loading.Upgrade("x", "fp16", lambda *_: None, lambda: new))
        ways.begin_upgrade()
        self.until(lambda: any(isinstance(r, Upgrade) and r.state == "failed" for r in said))
        assert new.closed
        assert not old.closed
        with ways.use((HEIGHT, WIDTH)) as way:
            assert way is not None
            assert way.engine is old
        ways.stop(5)

    def test_a_wish_for_the_old_engines_other_mode_comes_too_late(self) -> None:
        from server.testing.engines import FakeSettings

        new = FakeEngine(FakeSettings())
        ways, _, said = self.ways(
            loading.Upgrade("x", "fp16", lambda *_: None, lambda: new), lambda: FakeEngine(FakeSettings(parallel=2))
        )
        ways.begin_upgrade()
        self.until(lambda: any(isinstance(reply, Switched) for reply in said))
        ways._wanted.put("throughput")
        ways.prepare(640, 640)
        self.until(lambda: any(isinstance(reply, Prepared) for reply in said))
        assert not any(isinstance(reply, protocol.Mode) for reply in said)
        with ways.use((640, 640)) as way:
            assert way is not None
            assert way.engine is new
        ways.stop(5)

    def test_an_old_engine_that_cannot_be_closed_costs_nobody(self) -> None:
        from server.testing.engines import FakeSettings

        new = FakeEngine(FakeSettings())
        ways, old, said = self.ways(loading.Upgrade("x", "fp16", lambda *_: None, lambda: new))

        def refuse() -> None:
            raise EngineError("it clings to life")

        old.close = refuse  # type: ignore[method-assign]
        ways.begin_upgrade()
        self.until(lambda: any(isinstance(reply, Switched) for reply in said))
        ways.stop(5)

    def test_a_builder_that_is_given_up_at_the_end_is_not_called_a_failure(self) -> None:
        def build(progress: Any, cancelled: threading.Event) -> None:
            cancelled.wait(20)
            raise EngineError("cancelled")

        ways, _, said = self.ways(loading.Upgrade("x", "fp16", build, lambda: None))  # type: ignore[arg-type, return-value]
        ways.begin_upgrade()
        self.until(lambda: bool(said))
        assert ways.stop(5)
        assert [type(reply) for reply in said] == [Upgrade]


@pytest.mark.system
def test_the_server_learns_of_all_of_it(file: Path) -> None:
    """A real worker process: what the server believes of its engine, and what it tells of the upgrade."""

    async def test() -> None:
        ups: list[Hello] = []
        config = WorkerConfig(bundle=fake_bundle(upgrade=str(file)), engine_factory=FACTORY)
        worker = Worker(
            config, on_up=ups.append, on_done=lambda *_: None, on_prepared=lambda *_: None, on_down=lambda reason: None
        )
        assert worker.upgrade is None
        worker.start()

        async def until(condition: Any) -> None:
            async with asyncio.timeout(30):
                while not condition():  # noqa: ASYNC110  a callback of the worker's is no event of this test
                    await asyncio.sleep(0.01)

        await until(lambda: worker.upgrade is not None and worker.upgrade.progress == 0.5)
        assert [up.engine for up in ups] == ["fake"]
        build(file)
        await until(lambda: len(ups) == 2)
        assert (ups[1].engine, ups[1].precision, ups[1].parallel, ups[1].max_batch) == ("faster", "fp16", 2, 16)
        assert (ups[1].height, ups[1].width) == (ups[0].height, ups[0].width)
        assert worker.upgrade is None
        await worker.stop()

    asyncio.run(test())


class TestLoading:
    """Which engine a worker begins with on a machine with an NVIDIA GPU, whose TensorRT is a fake."""

    @pytest.fixture
    def house(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        from server.testing.engines import FakeSettings

        house = SimpleNamespace(
            built=False, site_error=None, engine_error=None, chosen=[], built_with=[],
            stopgap=FakeEngine(FakeSettings()), tensorrt=FakeEngine(FakeSettings()),
        )  # fmt: skip
        house.tensorrt.name, house.tensorrt.precision = "tensorrt", "fp16"
        bundle = SimpleNamespace(path="/bundle", input_size=640)
        monkeypatch.setattr(loading.Bundle, "load", lambda path: bundle)
        monkeypatch.setattr(yolov9.engines, "_NVIDIA", (Path("/"),))

        def site(bundle: Any, **options: Any) -> Any:
            if house.site_error:
                raise house.site_error
            return SimpleNamespace(built=house.built, bundle=bundle, wanted=SimpleNamespace(precision="fp16"))

        def engine(bundle: Any, *, build: bool, where: Any) -> Any:
            assert not build, "a worker never builds by itself"
            if not house.built:
                raise NotBuilt("there is none yet")
            if house.engine_error:
                raise house.engine_error
            return house.tensorrt

        def choose(bundle: Any, name: str, precision: str, **options: Any) -> Choice:
            house.chosen.append((name, precision))
            return Choice(house.stopgap, "fake: the fastest that works here")

        def in_background(bundle: Any, **options: Any) -> None:
            house.built_with.append((bundle, options))

        monkeypatch.setattr(loading, "site", site)
        monkeypatch.setattr(loading, "TensorRtEngine", engine)
        monkeypatch.setattr(loading, "choose", choose)
        monkeypatch.setattr(loading, "build_in_background", in_background)
        return house

    def load(self, engine: str = "auto", **fields: Any) -> Loaded:
        return loading.from_bundle(WorkerConfig(bundle="/bundle", engine=engine, **fields))

    @pytest.mark.parametrize("engine", ["auto", "tensorrt"])
    def test_the_next_best_serves_until_tensorrt_is_built(self, house: SimpleNamespace, engine: str) -> None:
        loaded = self.load(engine, precision="fp16", max_batch=4, cache_dir="/cache")
        assert loaded.engine is house.stopgap
        assert house.chosen == [("auto", "fp16" if engine == "auto" else "auto")]
        assert ("until tensorrt has been built" in loaded.why) == (engine == "tensorrt")
        assert loaded.upgrade is not None
        assert (loaded.upgrade.engine, loaded.upgrade.precision) == ("tensorrt", "fp16")
        cancelled = threading.Event()
        loaded.upgrade.build(lambda share, what: None, cancelled)
        ((bundle, options),) = house.built_with
        assert bundle == "/bundle"
        assert (options["precision"], options["max_batch"], options["cache_dir"]) == ("fp16", 4, "/cache")
        assert options["cancelled"] is cancelled
        house.built = True
        assert loaded.upgrade.make() is house.tensorrt

    def test_what_has_been_built_serves_at_once(self, house: SimpleNamespace) -> None:
        house.built = True
        loaded = self.load("tensorrt")
        assert (loaded.engine, loaded.upgrade) == (house.tensorrt, None)
        assert loaded.why == "tensorrt fp16: asked for by name"

    def test_asked_for_by_name_it_is_had_or_refused(self, house: SimpleNamespace) -> None:
        house.site_error = EngineError("no NVIDIA driver here")
        with pytest.raises(EngineError, match="no NVIDIA driver here"):
            self.load("tensorrt")
        house.site_error, house.built, house.engine_error = None, True, EngineError("out of memory")
        with pytest.raises(EngineError, match="out of memory"):
            self.load("tensorrt")
        assert house.chosen == []

    def test_auto_does_without_it_where_it_cannot_be_had_or_has_failed(self, house: SimpleNamespace) -> None:
        house.site_error = EngineError("tensorrt is not installed")
        assert self.load().upgrade is None
        house.site_error, house.built = None, True
        assert self.load().upgrade is None, "built, and not chosen: it does not work"

    def test_another_engine_by_name_is_not_replaced(self, house: SimpleNamespace) -> None:
        assert self.load("onnxruntime").upgrade is None

    def test_without_an_nvidia_gpu_nothing_of_it_is_looked_at(
        self, house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(yolov9.engines, "_NVIDIA", ())
        house.site_error = AssertionError("looked for TensorRT")
        assert self.load().upgrade is None


def test_messages_of_the_upgrade_travel() -> None:
    for message in (
        Upgrade("tensorrt", "fp16", "building", 0.25, "x"),
        Switched("tensorrt", "fp16", "gpu", "y", 2, 16),
    ):
        assert protocol.decode_reply(protocol.encode(message)) == message
