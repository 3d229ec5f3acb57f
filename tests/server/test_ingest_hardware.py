"""Hardware decoders: which are tried, and that nothing is lost where there is none. No hardware is needed."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from ingest_streams import encoded

from server.ingest import hardware
from server.ingest.decoder import Decoder, Shown
from server.ingest.source import StreamInfo
from server.ingest.wire import DecodeErrorKind

H264 = StreamInfo("h264", width=192, height=128)


def test_what_is_there_is_found(tmp_path: Path) -> None:
    devices, classes = tmp_path / "dev", tmp_path / "class"
    assert hardware.present(devices, classes) == []
    for node, vendor in (("renderD128", "0x1002"), ("renderD129", "0x8086"), ("renderD130", "0x8086")):
        (devices / "dri").mkdir(parents=True, exist_ok=True)
        (devices / "dri" / node).touch()
        (classes / node / "device").mkdir(parents=True)
        (classes / node / "device" / "vendor").write_text(f"{vendor}\n")
    assert hardware.present(devices, classes) == ["qsv"]
    (devices / "nvidiactl").touch()
    assert hardware.present(devices, classes) == ["cuda", "qsv"]


def test_only_auto_looks_for_hardware() -> None:
    assert hardware.wanted("auto", lambda: ["cuda", "qsv"]) == "cuda"
    assert hardware.wanted("auto", lambda: []) is None
    assert hardware.wanted("software", lambda: ["cuda"]) is None
    assert hardware.wanted("qsv", lambda: []) == "qsv"


@pytest.mark.parametrize("kind", ["cuda", "vaapi", "qsv"])
def test_without_it_every_frame_is_decoded_in_software_and_why_is_said(kind: str) -> None:
    if kind in hardware.present():
        pytest.skip(f"this machine may well have {kind}")
    decoder = Decoder(H264, kind=kind)
    units = encoded("p", 40)
    verdicts = [verdict for seq, unit in enumerate(units) for verdict in decoder.decode(seq, unit)]
    # Quick Sync's absence shows with the first frames: those up to the next keyframes are lost.
    assert sum(isinstance(verdict, Shown) for verdict in verdicts) >= (20 if kind == "qsv" else 40)
    assert decoder.kind == "software"
    assert (decoder.detail or "").startswith(kind)
    assert decoder.complaints[DecodeErrorKind.HARDWARE] == 1


def test_it_is_used_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "context", lambda kind, codec: av.CodecContext.create(codec, "r"))
    decoder = Decoder(H264, kind="cuda")
    verdicts = [verdict for seq, unit in enumerate(encoded("p", 20)) for verdict in decoder.decode(seq, unit)]
    assert all(isinstance(verdict, Shown) for verdict in verdicts)
    assert (decoder.kind, decoder.detail) == ("cuda", None)
    assert not decoder.complaints


def test_a_device_that_is_lost_midway_costs_frames_and_not_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def context(kind: str, codec: str) -> av.CodecContext:
        made.append(kind)
        if len(made) > 1:
            raise hardware.Unavailable("cuda: no device (ENODEV)")
        return av.CodecContext.create(codec, "r")

    monkeypatch.setattr(hardware, "context", context)
    decoder = Decoder(H264, kind="cuda")
    units = encoded("p", 40)
    before = [verdict for seq, unit in enumerate(units[:15]) for verdict in decoder.decode(seq, unit)]
    before += decoder.drain()
    after = [verdict for seq, unit in enumerate(units[20:], 20) for verdict in decoder.decode(seq, unit)]
    assert [sum(isinstance(verdict, Shown) for verdict in verdicts) for verdicts in (before, after)] == [15, 20]
    assert (decoder.kind, decoder.detail) == ("software", "cuda: no device (ENODEV)")
    assert decoder.complaints == {DecodeErrorKind.HARDWARE: 1}
