"""`python -m server.bench.viewers`: what people who look cost. Real cameras on loopback, and for each of them none, one
and many viewers in turn, each with the two WebSockets of the page: pictures and results.

    python -m server.bench.viewers --cameras 4 --viewers 1,4,16 --fps 10 --seconds 10 --rounds 3

CPU is that of the server's processes alone, cameras' included; the viewers have a process of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from websockets.asyncio.client import connect

from server.bench.processes import BenchError, Server, running_cameras, running_server
from server.bench.procfs import Usage, snapshot
from server.testing.footage import FootageMissing, bikes
from server.testing.synthetic import reencode
from yolov9.packaged import DEFAULT

_FIRST_RESULT_S = 60.0
_SETTLE_S = 2.0
_WIDTH = 640
"""As the page's grid asks for."""


@dataclass(frozen=True, slots=True)
class Round:
    viewers: int
    """Of each camera."""
    cores: dict[str, float]
    """Role of the process -> CPU seconds a second."""
    detected: float
    """Frames a second, all cameras together."""
    pictures: float
    """Pictures a second that the viewers got, all together."""

    @property
    def total(self) -> float:
        return sum(self.cores.values())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m server.bench.viewers", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--cameras", type=int, default=4, metavar="N")
    p.add_argument("--viewers", type=_numbers, default=[0, 1, 16], metavar="N,N", help="of each camera, in turn")
    p.add_argument("--fps", type=float, default=10.0, help="frames a second of each camera (default 10)")
    p.add_argument("--size", default="1280x720", metavar="WxH", help="of the pictures (default 1280x720)")
    p.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each measurement (default 10)")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="all in turn, so many times (default 3)")
    p.add_argument("--model", default=DEFAULT, metavar="BUNDLE|NAME")
    p.add_argument("--json", type=Path, metavar="FILE")
    return p


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        rounds = _measure(options)
    except (BenchError, FootageMissing) as error:
        print(f"server.bench.viewers: {error}", file=sys.stderr)
        return 1
    for line in table(rounds):
        print(line)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    return 0


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """Means by number of viewers, and the ratio to one viewer each where that was measured."""
    by_viewers: dict[int, list[Round]] = {}
    for one in rounds:
        by_viewers.setdefault(one.viewers, []).append(one)
    base = _mean([one.total for one in by_viewers.get(1, [])])
    roles = sorted({role for one in rounds for role in one.cores})
    heads = [*roles, "cores", "to 1 each", "detected/s", "sent/s"]
    yield " ".join(["viewers each", *(f"{head:>10}" for head in heads)])
    for viewers, group in sorted(by_viewers.items()):
        cores = [_mean([one.cores.get(role, 0.0) for one in group]) for role in roles]
        total = _mean([one.total for one in group])
        figures = [*cores, total, total / base if base else float("nan")]
        rates = [_mean([one.detected for one in group]), _mean([one.pictures for one in group])]
        yield " ".join([f"{viewers:>12}", *(f"{x:>10.3f}" for x in figures), *(f"{x:>10.1f}" for x in rates)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _measure(options: argparse.Namespace) -> list[Round]:
    width, _, height = options.size.partition("x")
    clip = reencode(bikes(), width=int(width), height=int(height))
    with tempfile.TemporaryDirectory(prefix="yolov9-viewers-") as folder, contextlib.ExitStack() as stack:
        cameras = stack.enter_context(running_cameras(options.cameras, clip, options.fps))
        arguments = ["--data", f"{folder}/data", "--model", options.model]
        server = stack.enter_context(running_server(arguments, Path(folder) / "log"))
        for stream, url in cameras.urls.items():
            server.json("POST", "/streams", {"id": stream, "url": url})
        streams = list(cameras.urls)
        deadline = time.monotonic() + _FIRST_RESULT_S
        while min(_completed(server, streams)) == 0:
            if time.monotonic() > deadline:
                raise BenchError(f"no result of every camera within {_FIRST_RESULT_S:g} s")
            time.sleep(0.2)
        return [
            _round(server, streams, viewers, options.seconds)
            for _ in range(options.rounds)
            for viewers in options.viewers
        ]


def _completed(server: Server, streams: Sequence[str]) -> list[int]:
    return [server.json("GET", f"/streams/{stream}/ledger")["completed"] for stream in streams]


def _round(server: Server, streams: Sequence[str], viewers: int, seconds: float) -> Round:
    assert server.pid is not None
    with _crowd(server, streams, viewers) as crowd:
        time.sleep(_SETTLE_S)
        usage = Usage(server.pid)
        before, pictures, began = sum(_completed(server, streams)), _asked(crowd), time.monotonic()
        usage.sample(snapshot())
        time.sleep(seconds)
        usage.sample(snapshot())
        spent = time.monotonic() - began
        detected, got = sum(_completed(server, streams)) - before, _asked(crowd) - pictures
    cores = {role: used / spent for role, used in usage.cpu_s().items()}
    return Round(viewers, cores, detected / spent, got / spent)


def _asked(crowd: Connection) -> int:
    crowd.send(None)
    return int(crowd.recv())


@contextlib.contextmanager
def _crowd(server: Server, streams: Sequence[str], viewers: int) -> Iterator[Connection]:
    """Viewers in a process of their own, which tells on demand how many pictures they got."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    address = server.websocket_url.removesuffix("/detections")
    paths = [f"{address}/streams/{stream}" for stream in streams] * viewers
    process = multiprocessing.get_context("spawn").Process(target=_look, args=(theirs, paths), daemon=True)
    process.start()
    theirs.close()
    try:
        _asked(ours)
        yield ours
    finally:
        process.terminate()
        process.join()


def _look(asked: Connection, paths: Sequence[str]) -> None:
    asyncio.run(_look_at(asked, paths))


async def _look_at(asked: Connection, paths: Sequence[str]) -> None:
    pictures = 0

    async def follow(url: str, counts: bool) -> None:
        nonlocal pictures
        async with connect(url, compression=None, max_size=None) as socket:
            async for _ in socket:
                pictures += counts

    def answer() -> None:
        asked.recv()
        asked.send(pictures)

    asyncio.get_running_loop().add_reader(asked.fileno(), answer)
    async with asyncio.TaskGroup() as group:
        for path in paths:
            group.create_task(follow(f"{path}/live?width={_WIDTH}", True))
            group.create_task(follow(f"{path}/detections", False))
        group.create_task(asyncio.Event().wait())  # until it is ended


if __name__ == "__main__":
    raise SystemExit(main())
