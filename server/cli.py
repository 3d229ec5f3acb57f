"""The command line of the server: options over environment over file, then the house is opened."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop
from pydantic import ValidationError

from server import __version__, logs
from server.access.registry import check_reach
from server.access.tokens import AccessError
from server.addresses import masked_url, split_credentials
from server.models.start import First, given, remembered
from server.secrecy import hide_arguments, no_core_dumps
from server.settings import ServerSettings, SettingsError, load_settings
from server.streams import StreamDefinition
from yolov9.bundle import Bundle, BundleError
from yolov9.packaged import DEFAULT, ModelNotFound

log = logging.getLogger("yolov9.server")


class UsageError(Exception):
    """The command cannot run as given; the message is for the person who typed it."""


def parser() -> argparse.ArgumentParser:
    """All options; those left out come from the environment (YOLOV9_...), the file, or the defaults."""
    p = argparse.ArgumentParser(
        prog="python -m server",
        description="Detects objects on RTSP cameras and video files; results over WebSocket, SSE and REST.",
    )
    p.add_argument("--version", action="version", version=f"yolov9-server {__version__}")
    p.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML (see configs/server.yaml)")
    p.add_argument("--host", help="address to listen on (default 127.0.0.1; others need a token)")
    p.add_argument("--port", type=int, help="port to listen on (default 8080; 0: any free one)")
    p.add_argument("--token", help="token that clients must show; better given as YOLOV9_TOKEN")
    p.add_argument("--model", metavar="BUNDLE|NAME", help=f"model bundle or packaged model (default {DEFAULT})")
    p.add_argument("--engine", help="auto (default), tensorrt, openvino, onnxruntime, torch")
    p.add_argument("--precision", help="auto (default), fp32, bf16, fp16, int8")
    p.add_argument("--threads", type=int, help="threads of the engine (default: all cores)")
    p.add_argument("--stream", action="append", default=[], metavar="URL", help="add a camera or file; repeatable")
    p.add_argument("--media", action="append", type=Path, metavar="DIR", help="files below may be streams; repeatable")
    p.add_argument("--data", type=Path, metavar="DIR", help="data base and caches (default ./yolov9-data)")
    p.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default info")
    p.add_argument("--demo", action="store_true", help="a camera of our own with real footage; keeps nothing")
    return p


def run(argv: list[str]) -> int:
    """Parse, check, serve. 0 after an orderly end, 1 if the server cannot run, 2 for bad usage."""
    options = parser().parse_args(argv)
    hide_arguments([options.token], options.stream)
    no_core_dumps()
    try:
        with contextlib.ExitStack() as stack:
            load = _loader(options, stack)
            try:
                settings = load()
            except SettingsError as error:
                raise UsageError(str(error)) from None
            logs.configure(settings.log_level, settings.log_format)
            _raise_descriptor_limit()
            first = _first(settings)
            streams = {_stream_id(url): url for url in options.stream}
            if options.demo:
                from server.demo import demo_camera

                streams["demo"] = stack.enter_context(demo_camera())
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(settings, load, first, streams))
    except UsageError as error:
        print(f"yolov9-server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _loader(options: argparse.Namespace, stack: contextlib.ExitStack) -> Callable[[], ServerSettings]:
    """Reads the settings from options, environment and file, as often as it is called. SettingsError."""
    names = ("host", "port", "token", "model", "engine", "precision", "threads", "media", "data", "log_level")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.demo and options.data is None:
        overrides["data"] = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yolov9-demo-")))

    def load() -> ServerSettings:
        settings = load_settings(options.config, overrides)
        try:
            check_reach(settings)
        except AccessError as error:
            raise SettingsError(str(error)) from None
        return settings

    return load


def _first(settings: ServerSettings) -> First | None:
    """The model that was asked for, if one was: before anything else is started."""
    try:
        return None if settings.model is None else given(settings.model, settings.data)
    except (ModelNotFound, BundleError) as error:
        raise UsageError(str(error)) from None


def _stream_id(url: str) -> str:
    """The same name at every start, so that a stream which the data base kept is not added twice."""
    bare, _, _ = split_credentials(url)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", bare.partition("://")[2] or Path(bare).stem).strip("-")[:40]
    return f"{readable or 'stream'}-{hashlib.sha256(bare.encode()).hexdigest()[:6]}"


def _raise_descriptor_limit() -> None:
    """256 cameras of some six descriptors and 1,000 clients do not fit the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    settings: ServerSettings, load: Callable[[], ServerSettings], first: First | None, streams: dict[str, str]
) -> int:
    from server.reload import Reloader, ignore_hangup, on_hangup

    ignore_hangup()  # what follows takes a second or two
    from server.delivery.app import create_app
    from server.delivery.ports import ServerError
    from server.delivery.serve import ServeError, serve
    from server.inference.client import Worker
    from server.inference.config import WorkerConfig
    from server.metrics import Metrics
    from server.runtime import Runtime
    from server.store import Store, StoreError

    def worker(bundle: Bundle, **callbacks: Any) -> Worker:
        config = WorkerConfig(
            bundle=str(bundle.path),
            engine=settings.engine,
            precision=settings.precision,
            threads=settings.threads,
            max_batch=settings.max_batch,
            cache_dir=str(settings.data / "engines"),
        )
        return Worker(config, **callbacks)

    try:
        # Before anybody else makes it: passwords, tokens and pictures will lie there.
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = Store(settings.data / "streams.sqlite")
        bundle, name = first or await remembered(store, settings.data)
        runtime = Runtime(settings, bundle, store, metrics=Metrics(), worker_factory=worker, model_name=name)
        await runtime.start()
    except (ModelNotFound, BundleError) as error:
        raise UsageError(str(error)) from None
    except (StoreError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    try:
        for stream_id, url in streams.items():
            if stream_id in runtime.streams:  # named on an earlier start too, and kept
                continue
            try:
                await runtime.add_stream(StreamDefinition(id=stream_id, url=url))
            except (ServerError, ValidationError) as error:
                raise UsageError(f"--stream {masked_url(url)}: {error}") from None
        reloader = Reloader(settings, load, runtime.reconfigure)
        with on_hangup(reloader):
            await serve(create_app(runtime, settings, reloader), settings, _announce, drain=runtime.drain)
        return 0
    except (ServeError, AccessError) as error:
        log.error("%s", error)
        return 1
    finally:
        with _no_second_signal():
            await runtime.stop()


@contextlib.contextmanager
def _no_second_signal() -> Iterator[None]:
    """The drain is bounded already; a second Ctrl-C or SIGTERM must not leave the ledger open, nor a reload."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(address: str) -> None:
    log.info("serving on %s (API: %s/docs, metrics: %s/metrics)", address, address, address)
