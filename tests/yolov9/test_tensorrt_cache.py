"""Engine files: found by what they are, rebuilt when damaged or another's, bounded, built by one process at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from tiny_model import random_model, tiny_bundle

from yolov9.engines import EngineError
from yolov9.engines.tensorrt import provide as provide_module
from yolov9.engines.tensorrt.build import BuildCancelled, Built
from yolov9.engines.tensorrt.cache import EngineCache, EngineFileError, default_folder, read, write
from yolov9.engines.tensorrt.provide import Site, provide
from yolov9.engines.tensorrt.recipe import Recipe, capability_of, portable_target, recipe, targets

NAMES3 = ("a", "b", "c")
RECIPE = Recipe(
    name="street", model="0123456789ab", classes=3, precision="fp16", shapes=((64, 128), (128, 128)), max_batch=16,
    candidates=512, flavour="tensorrt", version="10.3.0", target="RTX 4090 (8.9)", graph=1,
)  # fmt: skip
PLAN = bytes(range(256)) * 16


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


class TestFile:
    def test_what_is_written_is_read(self, tmp_path):
        write(tmp_path / "x.engine", RECIPE, PLAN)
        assert read(tmp_path / "x.engine") == (RECIPE, PLAN)
        assert [path.name for path in tmp_path.iterdir()] == ["x.engine"], "nothing half-written is left"

    @pytest.mark.parametrize("cut", [0, 10, 27, 60, 400, -1])
    def test_one_that_is_cut_short_is_refused(self, tmp_path, cut):
        path = tmp_path / "x.engine"
        write(path, RECIPE, PLAN)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(EngineFileError, match=r"x\.engine: "):
            read(path)

    def test_every_single_damaged_byte_is_noticed(self, tmp_path):
        path = tmp_path / "x.engine"
        write(path, RECIPE, PLAN[:64])
        good = path.read_bytes()
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 0x10
            path.write_bytes(bad)
            try:
                found = read(path)
            except EngineFileError:
                continue
            assert found.recipe != RECIPE, f"byte {position}: the header is another engine's, which the cache refuses"

    def test_the_old_one_stays_if_the_new_one_cannot_be_written(self, tmp_path, monkeypatch):
        path = tmp_path / "x.engine"
        write(path, RECIPE, PLAN)

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(path, RECIPE, b"new")
        assert read(path).plan == PLAN
        assert len(list(tmp_path.iterdir())) == 1


class TestKey:
    def test_everything_that_makes_another_engine_makes_another_key(self):
        others = [
            msgspec.structs.replace(RECIPE, **change)
            for change in (
                {"model": "ba9876543210"}, {"precision": "int8"}, {"shapes": ((64, 128),)}, {"max_batch": 8},
                {"shapes": ((128, 128), (64, 128))}, {"candidates": 256}, {"flavour": "tensorrt_rtx"},
                {"version": "10.4.0"}, {"target": "RTX 4080 (8.9)"}, {"graph": 999}, {"classes": 4},
            )
        ]  # fmt: skip
        assert len({one.key for one in [RECIPE, *others]}) == len(others) + 1
        assert msgspec.structs.replace(RECIPE).key == RECIPE.key

    def test_the_name_tells_people_what_it_is(self):
        assert re.fullmatch(r"street-fp16-[0-9a-f]{16}\.engine", RECIPE.file)
        assert str(RECIPE) == "street fp16 for tensorrt 10.3.0"

    def test_a_portable_engine_is_looked_for_by_compute_capability(self, fake):
        portable, bound = fake("tensorrt_rtx"), fake("tensorrt")
        assert targets(portable, "RTX 4090", (8, 9)) == ["8.9", "any"]
        assert targets(portable, "RTX 2080", (7, 5)) == ["7.5"], "which has to be named"
        assert targets(bound, "RTX 4090", (8, 9)) == ["RTX 4090 (8.9)"]
        assert [capability_of(portable_target(c)) for c in (None, (8, 9), (12, 0))] == [None, (8, 9), (12, 0)]

    def test_by_default_it_is_for_every_shape_of_the_bundle(self, fake, tmp_path):
        bundle = tiny_bundle(tmp_path / "b", random_model(3), NAMES3)
        made = recipe(bundle, fake("tensorrt"), "x")
        assert made.shapes == ((128, 128), (96, 128), (64, 128), (128, 96), (128, 64))
        assert (made.precision, made.max_batch, made.model) == ("fp16", 16, bundle.hash)


class TestCache:
    def test_miss_then_hit(self, cache):
        assert cache.find(RECIPE) is None
        assert not cache.holds(RECIPE)
        path = cache.add(RECIPE, PLAN)
        assert path == cache.path(RECIPE)
        assert cache.find(RECIPE) == PLAN
        assert cache.find(msgspec.structs.replace(RECIPE, version="10.4.0")) is None

    @pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"junk", lambda data: b""])
    def test_what_is_damaged_is_removed_and_said(self, cache, damage, caplog):
        path = cache.add(RECIPE, PLAN)
        path.write_bytes(damage(path.read_bytes()))
        assert cache.find(RECIPE) is None
        assert not path.exists()
        assert "engine file removed: " in caplog.text

    def test_a_file_that_holds_another_engine_is_removed_and_said(self, cache, caplog):
        other = msgspec.structs.replace(RECIPE, version="9.9", target="another GPU")
        write(cache.path(RECIPE), other, PLAN)
        assert cache.find(RECIPE) is None
        assert "holds street fp16 for tensorrt 9.9 for another GPU" in caplog.text
        assert not cache.holds(RECIPE)

    def test_a_folder_that_cannot_be_written_serves_as_well(self, cache, monkeypatch):
        cache.add(RECIPE, PLAN)

        def denied(*_, **__):
            raise PermissionError(13, "denied")

        monkeypatch.setattr(os, "utime", denied)
        assert cache.find(RECIPE) == PLAN

    def test_what_was_used_longest_ago_makes_room(self, tmp_path, caplog):
        cache = EngineCache(tmp_path, bound=3 * len(PLAN) + 3000)
        recipes = [msgspec.structs.replace(RECIPE, version=f"10.{i}") for i in range(5)]
        for i, one in enumerate(recipes[:3]):
            os.utime(cache.add(one, PLAN), (1000 + i, 1000 + i))
        cache.add_kernels(recipes[1], b"kernels")
        assert cache.find(recipes[0]) == PLAN, "used now"
        with caplog.at_level("INFO"):
            cache.add(recipes[3], PLAN)
        assert [cache.holds(one) for one in recipes] == [True, False, True, True, False]
        assert cache.kernels(recipes[1]) is None
        assert "to make room" in caplog.text
        cache.add(recipes[4], bytes(10 * len(PLAN)))
        assert [cache.holds(one) for one in recipes] == [False] * 4 + [True], "the newest stays, whatever its size"

    def test_what_a_killed_process_left_half_written_goes(self, cache):
        cache.add(RECIPE, PLAN)
        left = cache.folder / f".{RECIPE.file}.0123abcd.part"
        left.write_bytes(b"half")
        cache.add(msgspec.structs.replace(RECIPE, version="11"), PLAN)
        assert not left.exists()

    def test_timings_are_kept_by_version_and_device(self, cache):
        assert cache.timing(RECIPE) is None
        cache.add_timing(RECIPE, b"measured")
        assert cache.timing(msgspec.structs.replace(RECIPE, precision="int8", shapes=())) == b"measured"
        assert cache.timing(msgspec.structs.replace(RECIPE, version="11")) is None
        assert cache.timing(msgspec.structs.replace(RECIPE, target="another GPU")) is None

    def test_the_folder_is_the_users_own(self, cache, monkeypatch, tmp_path):
        cache.add(RECIPE, PLAN)
        assert cache.folder.stat().st_mode & 0o077 == 0
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_folder() == tmp_path / "yolov9" / "engines"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        assert default_folder() == tmp_path / "me" / ".cache" / "yolov9" / "engines"


@pytest.fixture
def fake():
    from types import SimpleNamespace

    from yolov9.engines.tensorrt.api import Api, Messages

    return lambda flavour="tensorrt": Api(SimpleNamespace(), flavour, "10.3.0", None, Messages())


@pytest.fixture
def where(cache, fake, tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle", random_model(3), NAMES3)
    api = fake()
    return Site(bundle, api, None, cache, (recipe(bundle, api, "RTX 4090 (8.9)"),))


class Builder:
    """Instead of `build`: counts, takes its time, fails if told to."""

    def __init__(self, monkeypatch, seconds=0.0, error=None, refuses=False):
        self.calls = []
        self.inside = self.most = 0
        self._seconds, self._error, self._refuses = seconds, error, refuses
        self._lock = threading.Lock()
        self.tried = 0
        monkeypatch.setattr(provide_module, "build", self)
        monkeypatch.setattr(provide_module, "try_out", self._try_out)

    def _try_out(self, api, cuda, wanted, plan):
        self.tried += 1
        if self._refuses:
            raise EngineError("it gives NaN")
        return b"kernels"

    def __call__(self, api, graph, wanted, options):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(self._seconds)
        with self._lock:
            self.inside -= 1
        self.calls.append((wanted, options))
        if self._error is not None:
            raise self._error
        options.progress(1.0, "done")
        return Built(PLAN, b"measured", Counter())


class TestProvide:
    def test_built_once_then_found(self, where, monkeypatch):
        builder = Builder(monkeypatch)
        told = []
        assert provide(where, progress=lambda *what: told.append(what)) == (where.wanted, PLAN)
        assert told == [(1.0, "done"), (1.0, "trying it out")]
        assert provide(where) == (where.wanted, PLAN)
        assert where.built
        assert (len(builder.calls), builder.tried) == (1, 1)
        assert where.cache.kernels(where.wanted) == b"kernels"

    def test_what_does_not_run_is_not_kept(self, where, monkeypatch):
        Builder(monkeypatch, refuses=True)
        with pytest.raises(EngineError, match="it gives NaN"):
            provide(where)
        assert not where.built
        assert where.cache.timing(where.wanted) == b"measured", "what was measured holds all the same"

    def test_what_is_damaged_is_built_anew_with_what_was_measured(self, where, monkeypatch):
        builder = Builder(monkeypatch)
        provide(where)
        path = where.cache.path(where.wanted)
        path.write_bytes(path.read_bytes()[:-7])
        assert where.built, "there is a file"
        assert provide(where)[1] == PLAN
        assert [options.timing_cache for _, options in builder.calls] == [None, b"measured"]
        assert read(path).plan == PLAN

    def test_a_build_that_fails_leaves_nothing(self, where, monkeypatch):
        Builder(monkeypatch, error=EngineError("the kernel is not amused"))
        with pytest.raises(EngineError, match="not amused"):
            provide(where)
        assert not where.built
        builder = Builder(monkeypatch)
        provide(where)
        assert len(builder.calls) == 1, "the lock is free again"

    def test_several_at_once_build_it_once(self, where, monkeypatch):
        builder = Builder(monkeypatch, seconds=0.1)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: provide(where), range(4)))
        assert found == [(where.wanted, PLAN)] * 4
        assert len(builder.calls) == 1

    def test_different_engines_are_built_one_after_the_other(self, where, monkeypatch, fake):
        builder = Builder(monkeypatch, seconds=0.05)
        others = [
            Site(where.bundle, where.api, None, where.cache, (recipe(where.bundle, where.api, "x", max_batch=n),))
            for n in (1, 2, 3)
        ]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(provide, others))
        assert (len(builder.calls), builder.most) == (3, 1)


_HOLDER = """
import sys, time
from pathlib import Path
from yolov9.engines.tensorrt.cache import EngineCache
with EngineCache(Path(sys.argv[1])).building():
    print("building", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(cache):
    """Another process that builds."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(cache.folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"building\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


class TestLock:
    def test_another_process_is_waited_for_until_it_ends_however(self, cache, holder, caplog):
        entered = threading.Event()

        def build():
            with cache.building():
                entered.set()

        with caplog.at_level("INFO"):
            thread = threading.Thread(target=build)
            thread.start()
            assert not entered.wait(0.5)
            assert "waiting for another process" in caplog.text
            holder.kill()
            assert entered.wait(10)
            thread.join()

    def test_waiting_can_be_given_up(self, cache, holder):
        cancelled = threading.Event()
        threading.Timer(0.3, cancelled.set).start()
        with pytest.raises(BuildCancelled, match="while another process built one"), cache.building(cancelled):
            pass

    def test_engines_are_found_while_another_process_builds(self, cache, holder):
        write(cache.path(RECIPE), RECIPE, PLAN)
        assert cache.find(RECIPE) == PLAN
