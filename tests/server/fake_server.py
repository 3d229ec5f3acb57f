"""A server around a fake runtime as a process of its own, for clients in numbers. Driven through stdin.

`publish COUNT RATE DETECTIONS` -> a line with what it cost; `rss` -> a line; end of file -> the end. Answers are JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

import psutil
import uvloop
from fake_runtime import FakeRuntime, detection

from server.delivery.app import create_app
from server.delivery.serve import serve
from server.settings import ServerSettings

STREAMS = ("door", "yard")


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def publish(runtime: FakeRuntime, count: int, rate: float, detections: int) -> None:
    """`count` messages, turn by turn for each stream, at `rate` a second."""
    found = [detection()] * detections
    cpu, began = cpu_s(), time.monotonic()
    for number in range(count):
        runtime.see(STREAMS[number % len(STREAMS)], *found)
        await asyncio.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
    say(published=count, cpu_s=cpu_s() - cpu, wall_s=time.monotonic() - began)


async def main() -> None:
    runtime = FakeRuntime()
    for stream in STREAMS:
        runtime.add(stream)
    settings, stop = ServerSettings(port=0), asyncio.Event()
    app = create_app(runtime, settings)
    serving = asyncio.create_task(serve(app, settings, lambda address: say(address=address), stop=stop))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.split():
            case ["publish", count, rate, detections]:
                await publish(runtime, int(count), float(rate), int(detections))
            case ["rss"]:
                say(rss=psutil.Process().memory_info().rss, clients=len(runtime.hub))
            case _:
                raise ValueError(line)
    stop.set()
    await serving


if __name__ == "__main__":
    uvloop.run(main())
