"""Twenty changes of the model under load: python -m server.testing.swaps

A real server with cameras over RTSP and files of which no frame may be lost runs for a while with one model, then goes
through changes to and fro between it, the same under another name, and the same at a larger input, then rests. Told are
the frames of each phase by what became of them, and the processes, descriptors and memory before and after. The models
are small ones that read test patterns: what is measured are the changes. Needs the package `onnx`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.bench.processes import BenchError, Server, running_cameras, running_server
from server.soak.sample import KINDS, Sample, take
from server.testing.synthetic import make_clip
from server.testing.truth.model import truth_bundle

_SIZE = (640, 352)
_MODELS = {"small": 320, "again": 320, "larger": 480}
"""Names and input sizes."""
_LOSES_NOTHING = "file"
"""Begin of the names of streams that are first in, first out."""
_SETTLE_S = 3.0
_PATIENCE_S = 120.0


def main(argv: list[str] | None = None) -> int:
    """0 if nothing was lost by the changes and everything came back to its level."""
    parser = argparse.ArgumentParser(prog="python -m server.testing.swaps", description=__doc__.partition("\n")[0])
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--cameras", type=int, default=4, help="live cameras (default 4)")
    parser.add_argument("--files", type=int, default=2, help="paced files of which no frame may be lost (default 2)")
    parser.add_argument("--fps", type=float, default=5.0, help="frames a second of each (default 5)")
    parser.add_argument("--json", type=Path, help="write the report there")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="yolov9-swaps-") as scratch:
        report = run(options, Path(scratch))
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    for fault in report["faults"]:
        print(f"swaps: {fault}", file=sys.stderr)
    return 1 if report["faults"] else 0


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The report. BenchError if the server cannot be had."""
    width, height = _SIZE
    frames, gop = int(options.fps * 8), int(options.fps * 2)
    clip = make_clip(width=width, height=height, fps=options.fps, frames=frames, gop=gop)
    incoming = scratch / "data" / "incoming"
    for name, input_size in _MODELS.items():
        _write_model(incoming / name, input_size)
    names = list(_MODELS)
    settings = ["--data", str(scratch / "data"), "--media", str(clip.parent), "--model", str(incoming / names[0])]
    with (
        running_cameras(options.cameras, clip, options.fps) as cameras,
        running_server(settings, scratch / "server.log") as server,
    ):
        pid = server.pid
        assert pid is not None, "it is ours"
        for name in names[1:]:
            server.ask("POST", "/models", {"path": str(incoming / name)})
        for stream, url in cameras.urls.items():
            server.ask("POST", "/streams", {"id": stream, "url": url})
        for number in range(options.files):
            file = {"id": f"{_LOSES_NOTHING}{number}", "url": clip.name, "loop": True, "every_frame": True}
            server.ask("POST", "/streams", file | {"realtime": True})
        _wait_for_all(server)
        change_models(server, [*names[1:], names[0]])  # what is cached is cached
        time.sleep(_SETTLE_S)
        before, began = take(pid, 0.0), ledgers(server)
        taken: list[float] = []
        memory: list[dict[str, float]] = []
        rest_s = 1.5 * options.swaps
        time.sleep(rest_s)
        rested = ledgers(server)
        for number in range(options.swaps):
            taken += change_models(server, [names[(number + 1) % len(names)]])
            if (number + 1) % len(names) == 0:  # the first one is back
                memory.append(take(pid, taken[-1]).series())
        swapped = ledgers(server)
        change_models(server, [names[0]])
        time.sleep(_SETTLE_S)
        after = take(pid, 1.0)
        model = server.model()
    phases = {"without changes": difference(began, rested), "with changes": difference(rested, swapped)}
    return {
        "engine": model, "swaps": options.swaps, "rest_s": rest_s, "frames": phases,
        "seconds": {"median": round(statistics.median(taken), 2), "most": round(max(taken), 2)},
        "memory_mb": {name: [round(one[name] / 1e6, 1) for one in memory] for name in KINDS},
        "before": before.series(), "after": after.series(), "faults": list(_faults(phases, before, after)),
    }  # fmt: skip


def change_models(server: Server, names: Sequence[str]) -> list[float]:
    """Activate each in turn, and wait until the one before has ended; seconds that each took. BenchError: refused."""
    taken = []
    for name in names:
        began = time.monotonic()
        server.ask("POST", f"/models/{name}/activate?force=true", {})
        with _patience(f"model {name}") as waits:
            while waits():
                model = server.json("GET", f"/models/{name}")
                if model["state"] == "refused":
                    raise BenchError(f"model {name} was refused: {model['reason']}")
                if model["active"] and all(m["state"] != "loading" for m in server.json("GET", "/models")):
                    break
        taken.append(time.monotonic() - began)
    return taken


def ledgers(server: Server) -> dict[str, Counter[str]]:
    """Stream -> received, completed and `dropped STAGE REASON`."""
    found: dict[str, Counter[str]] = {}
    for stream in server.json("GET", "/streams"):
        ledger = server.json("GET", f"/streams/{stream['id']}/ledger")
        counts = Counter({"received": ledger["received"], "completed": ledger["completed"]})
        for stage, reasons in ledger["dropped"].items():
            for reason, count in reasons.items():
                counts[f"dropped {stage} {reason}"] = count
        found[stream["id"]] = counts
        lost = sum(counts.values()) - ledger["received"] - ledger["completed"]
        if ledger["received"] != ledger["completed"] + ledger["in_flight"] + lost:
            raise BenchError(f"the ledger of {stream['id']} does not balance: {ledger}")
    return found


def difference(before: dict[str, Counter[str]], after: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """What came in between: by kind of stream (live, file)."""
    found: dict[str, Counter[str]] = {"live": Counter(), "file": Counter()}
    for stream, counts in after.items():
        found["file" if stream.startswith(_LOSES_NOTHING) else "live"].update(counts - before[stream])
    return {kind: dict(counts) for kind, counts in found.items()}


def _faults(phases: dict[str, dict[str, dict[str, int]]], before: Sample, after: Sample) -> Iterator[str]:
    changed = phases["with changes"]
    for name, count in changed["file"].items():
        if name.startswith("dropped"):
            yield f"{count} frames of files: {name}"
    for name, count in changed["live"].items():
        if name.startswith("dropped") and name != "dropped batching replaced":
            yield f"{count} live frames: {name}"
    for name in ("processes", "descriptors", "segments"):
        if before.series()[name] != after.series()[name]:
            yield f"{name}: {before.series()[name]:g} before, {after.series()[name]:g} after"


def _write_model(path: Path, input_size: int) -> None:
    truth_bundle(path, *_SIZE, input_size)
    manifest = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(manifest | {"name": path.name}))


def _wait_for_all(server: Server) -> None:
    with _patience("detections of all streams") as waits:
        while waits():
            if all(counts["completed"] >= 3 for counts in ledgers(server).values()):
                return


@contextmanager
def _patience(what: str) -> Iterator[Any]:
    """Gives a function to wait with, a little at each call. BenchError when it has taken too long."""
    deadline = time.monotonic() + _PATIENCE_S

    def waits() -> bool:
        if time.monotonic() > deadline:
            raise BenchError(f"waited {_PATIENCE_S:g} s in vain for {what}")
        time.sleep(0.1)
        return True

    yield waits


if __name__ == "__main__":
    sys.exit(main())
