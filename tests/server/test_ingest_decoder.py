"""Verdicts of the decoder: each access unit gets exactly one, and what is shown is what the camera saw."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_streams import CODINGS, codec_of, encoded, picture

from server.ingest.decoder import Decoder, Dropped, Shown, Verdict
from server.ingest.libav import LibavSource
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo
from server.ingest.wire import DecodeErrorKind, DropReason

Luma = npt.NDArray[np.uint8]
D = DropReason


def decode(decoder: Decoder, units: Iterable[AccessUnit], first: int = 0) -> list[Verdict]:
    """All verdicts, after checking that each unit has exactly one."""
    verdicts: list[Verdict] = []
    seq = first - 1
    for seq, unit in enumerate(units, first):
        verdicts += decoder.decode(seq, unit)
    verdicts += decoder.drain()
    assert sorted(v.seq for v in verdicts) == list(range(first, seq + 1))
    return verdicts


def shown(verdicts: list[Verdict]) -> dict[int, Luma]:
    return {v.seq: luma(v.frame) for v in verdicts if isinstance(v, Shown)}


def dropped(verdicts: list[Verdict]) -> dict[int, DropReason]:
    return {v.seq: v.reason for v in sorted(verdicts, key=lambda v: v.seq) if isinstance(v, Dropped)}


def luma(frame: av.VideoFrame) -> Luma:
    return np.asarray(frame.to_ndarray(format="gray"), np.uint8)


@functools.cache
def clean(coding: str) -> dict[int, Luma]:
    return shown(decode(Decoder(StreamInfo(codec_of(coding))), encoded(coding)))


def assert_clean(coding: str, pictures: dict[int, Luma], shift_from: int | None = None) -> None:
    """Every picture is what a clean decoding of the whole stream gives. `shift_from`: that unit was left out."""
    reference = clean(coding)
    for seq, got in pictures.items():
        original = seq if shift_from is None or seq < shift_from else seq + 1
        assert np.array_equal(got, reference[original]), f"{coding}: picture {seq} is torn"


# Clean streams.


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_clean_stream_is_shown_whole_and_in_order(coding: str, threads: int) -> None:
    units = encoded(coding)
    decoder = Decoder(StreamInfo(codec_of(coding)), threads=threads)
    verdicts = decode(decoder, units)
    assert dropped(verdicts) == {}
    times = [units[v.seq].pts for v in verdicts]
    assert times == sorted(units[n].pts or 0 for n in range(len(units)))
    assert not decoder.complaints


def test_what_another_decoder_complained_of_before_condemns_nothing() -> None:
    Decoder(StreamInfo("h264"))  # from the first one on, libav's log is listened to
    foreign = av.CodecContext.create("h264", "r")
    unit = encoded("p")[0]
    with contextlib.suppress(av.error.FFmpegError):
        foreign.decode(av.Packet(unit.data[: len(unit.data) // 2]))  # type: ignore[attr-defined]
        foreign.decode(None)  # type: ignore[attr-defined]
    decoder = Decoder(StreamInfo("h264"))
    assert dropped(decode(decoder, encoded("p"))) == {}
    assert not decoder.complaints


@pytest.mark.parametrize("coding", ["p", "baseline", "slices", "refresh", "hevc"])
def test_without_b_frames_no_picture_is_held_back(coding: str) -> None:
    decoder = Decoder(StreamInfo(codec_of(coding)))
    for seq, unit in enumerate(encoded(coding)):
        assert [v.seq for v in decoder.decode(seq, unit)] == [seq]


@pytest.mark.parametrize("coding", ["p", "b", "hevc", "hevc-b"])
def test_nothing_is_shown_before_the_first_keyframe(coding: str) -> None:
    units = encoded(coding)[3:]
    verdicts = decode(Decoder(StreamInfo(codec_of(coding))), units)
    start = next(n for n, unit in enumerate(units) if unit.keyframe)
    assert dropped(verdicts) == dict.fromkeys(range(start), D.AWAITING_KEYFRAME)
    assert set(shown(verdicts)) == set(range(start, len(units)))


@pytest.mark.parametrize("coding", ["open-gop", "hevc-cra", "refresh"])
def test_entering_at_an_open_keyframe_shows_nothing_that_refers_to_what_was_before(coding: str) -> None:
    units = encoded(coding)
    start = [n for n, unit in enumerate(units) if unit.keyframe][1]
    verdicts = decode(Decoder(StreamInfo(codec_of(coding))), units[start:], first=start)
    assert set(dropped(verdicts).values()) <= {D.NOT_SHOWN, D.AWAITING_KEYFRAME, D.DAMAGED}
    pictures = shown(verdicts)
    assert len(pictures) >= 10
    assert_clean(coding, pictures)


def test_another_size_mid_stream_goes_on() -> None:
    units = (*encoded("p", 20), *encoded("p", 20, 128, 192))
    verdicts = decode(Decoder(StreamInfo("h264")), units)
    sizes = [(v.frame.width, v.frame.height) for v in verdicts if isinstance(v, Shown)]
    assert sizes == [(192, 128)] * 20 + [(128, 192)] * 20


def test_a_file_that_begins_anew_loses_no_picture() -> None:
    units = encoded("hevc-cra")
    again = (replace(units[0], discontinuity=True), *units[1:])
    verdicts = decode(Decoder(StreamInfo("hevc")), (*units, *again))
    assert dropped(verdicts) == {}
    assert_clean("hevc-cra", {seq % len(units): got for seq, got in shown(verdicts).items()})


def test_pictures_are_turned_as_the_container_says() -> None:
    for rotation in (0, 90, 180, 270):
        verdicts = decode(Decoder(StreamInfo("h264", rotation=rotation)), encoded("p", 12))
        assert {round(v.frame.rotation) % 360 for v in verdicts if isinstance(v, Shown)} == {rotation}


@pytest.mark.parametrize(
    ("encoder", "container"),
    [
        ("libvpx-vp9", "mkv"),
        ("mpeg4", "avi"),
        ("mpeg2video", "ts"),
        ("mjpeg", "avi"),
        ("wmv2", "asf"),
        ("prores_ks", "mov"),
    ],
)
def test_files_of_other_codecs_are_shown_whole(tmp_path: Path, encoder: str, container: str) -> None:
    path = tmp_path / f"clip.{container}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 192, 128
        stream.pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(encoder, "yuv420p")
        for number in range(20):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 192, 128), "rgb24")))
        output.mux(stream.encode(None))
    assert of_file(path) == {"shown": 20}


# Damage that the source knows of.


@pytest.mark.parametrize("coding", ["p", "hevc"])
def test_a_damaged_unit_costs_all_up_to_the_next_keyframe(coding: str) -> None:
    units = list(encoded(coding))
    units[14] = replace(units[14], damaged=True, lost_packets=3)
    decoder = Decoder(StreamInfo(codec_of(coding)))
    verdicts = decode(decoder, units)
    assert dropped(verdicts) == {14: D.DAMAGED} | dict.fromkeys(range(15, 20), D.AWAITING_KEYFRAME)
    assert decoder.complaints == {DecodeErrorKind.RTP_LOSS: 3}
    assert_clean(coding, shown(verdicts))


def test_a_damaged_unit_that_none_refers_to_costs_itself_only() -> None:
    units = list(encoded("b"))
    victim = next(n for n, unit in enumerate(units) if n > 12 and not unit.reference)
    units[victim] = replace(units[victim], damaged=True)
    verdicts = decode(Decoder(StreamInfo("h264")), units)
    assert dropped(verdicts) == {victim: D.DAMAGED}
    assert_clean("b", shown(verdicts))


def test_a_damaged_keyframe_is_no_start() -> None:
    units = list(encoded("p"))
    units[0] = replace(units[0], damaged=True)
    verdicts = decode(Decoder(StreamInfo("h264")), units)
    assert dropped(verdicts) == {0: D.DAMAGED} | dict.fromkeys(range(1, 10), D.AWAITING_KEYFRAME)


def test_a_damaged_jpeg_costs_itself_only() -> None:
    context = av.CodecContext.create("mjpeg", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt = 64, 64, "yuvj420p"
    context.time_base = Fraction(1, 25)
    units = []
    for number in range(6):
        frame = av.VideoFrame(64, 64, "yuvj420p")
        frame.pts = number
        units += [AccessUnit(bytes(p), None, 0, 0, keyframe=True) for p in context.encode(frame)]
    units[2] = replace(units[2], damaged=True)
    assert dropped(decode(Decoder(StreamInfo("mjpeg")), units)) == {2: D.DAMAGED}


# Damage that nobody knows of.


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("coding", ["p", "baseline", "slices", "b", "hevc", "hevc-b"])
def test_a_lost_reference_is_noticed_and_nothing_torn_is_shown(coding: str, threads: int) -> None:
    units = encoded(coding)
    for lost in range(11, 18):
        if not units[lost].reference or (coding == "hevc-b" and lost == 17):
            continue
        verdicts = decode(Decoder(StreamInfo(codec_of(coding)), threads=threads), units[:lost] + units[lost + 1 :])
        pictures = shown(verdicts)
        assert_clean(coding, pictures, shift_from=lost)
        assert set(range(20, len(units) - 1)) <= set(pictures), "shown again from the next keyframe"
        if threads == 1:
            assert set(range(10)) <= set(pictures), "what came before is shown"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("coding", ["p", "baseline", "slices", "refresh"])
@pytest.mark.parametrize("kind", ["cut", "hole"])
def test_cut_h264_is_noticed_and_the_decoder_is_clean_afterwards(coding: str, kind: str, threads: int) -> None:
    """A keyframe behind the damage must be exact, too: libavcodec keeps what a macroblock that broke off left."""
    units = encoded(coding)
    rng = random.Random(3)
    noticed = 0
    for victim in range(11, 19):
        data = units[victim].data
        begin = rng.randrange(len(data) // 3, 2 * len(data) // 3)
        harmed = data[:begin] if kind == "cut" else data[:begin] + data[begin + len(data) // 6 :]
        decoder = Decoder(StreamInfo("h264"), threads=threads)
        verdicts = decode(decoder, (*units[:victim], replace(units[victim], data=harmed), *units[victim + 1 :]))
        noticed += bool(dropped(verdicts))
        behind = {seq: got for seq, got in shown(verdicts).items() if seq > victim or seq < victim - 3}
        if dropped(verdicts):
            assert_clean(coding, behind)
    # What is left of pictures as small as these after a hole can be valid by chance.
    assert noticed >= (7 if kind == "cut" else 3)


def test_a_decoder_that_starts_anew_knows_the_parameter_sets() -> None:
    """Cameras may send SPS and PPS once only."""
    units = list(encoded("p"))
    for n in (10, 20, 30):
        data = units[n].data
        slice_begin = next(m.start() for m in re.finditer(rb"\x00\x00\x01", data) if data[m.end()] & 0x1F == 5)
        units[n] = replace(units[n], data=data[slice_begin:])
    units[5] = replace(units[5], damaged=True)
    verdicts = decode(Decoder(StreamInfo("h264")), units)
    assert set(range(10, 40)) <= set(shown(verdicts))


def test_garbage_is_refused_and_counted() -> None:
    units = list(encoded("p"))
    header = units[12].data[:6]
    units[12] = replace(units[12], data=header + bytes(random.Random(1).randbytes(400)))
    decoder = Decoder(StreamInfo("h264"))
    verdicts = decode(decoder, units)
    assert dropped(verdicts)[12] in (D.DAMAGED, D.DECODE_ERROR)
    assert sum(decoder.complaints.values()) > 0
    assert decoder.last_complaint
    assert_clean("p", shown(verdicts))


# Ends.


def test_reset_gives_what_is_inside_the_reason_of_the_caller() -> None:
    decoder = Decoder(StreamInfo("h264"))
    units = encoded("b")
    verdicts = [v for seq, unit in enumerate(units[:9]) for v in decoder.decode(seq, unit)]
    rest = decoder.reset(D.DISCONNECTED)
    assert rest
    assert {v.reason for v in rest if isinstance(v, Dropped)} == {D.DISCONNECTED}
    assert sorted(v.seq for v in [*verdicts, *rest]) == list(range(9))
    assert decoder.reset(D.STOPPED) == []
    assert set(shown(decode(decoder, units[10:], first=10))) == set(range(10, 40)), "usable again, from a keyframe on"


@pytest.mark.parametrize("codec", ["no-such-codec", "aac", "", "x" * 200])
def test_a_codec_without_a_decoder_is_refused(codec: str) -> None:
    with pytest.raises(SourceError) as caught:
        Decoder(StreamInfo(codec))
    assert caught.value.reason is Reason.CODEC
    assert len(str(caught.value)) < 120


fates = st.sampled_from(["whole"] * 8 + ["damaged", "lost", "cut", "empty", "anew", "drained"])


@settings(max_examples=25)
@given(st.sampled_from(["p", "b", "hevc-cra"]), st.sampled_from([1, 2]), st.lists(fates, min_size=40, max_size=40))
def test_whatever_comes_each_unit_has_one_verdict(coding: str, threads: int, course: list[str]) -> None:
    decoder = Decoder(StreamInfo(codec_of(coding)), threads=threads)
    verdicts: list[Verdict] = []
    given_seqs = []
    for seq, (unit, fate) in enumerate(zip(encoded(coding), course, strict=True)):
        match fate:
            case "lost":
                continue
            case "damaged":
                unit = replace(unit, damaged=True)
            case "cut":
                unit = replace(unit, data=unit.data[: len(unit.data) // 2])
            case "empty":
                unit = replace(unit, data=b"\x00")
            case "anew":
                unit = replace(unit, discontinuity=True)
            case "drained":
                verdicts += decoder.drain()
        given_seqs.append(seq)
        verdicts += decoder.decode(seq, unit)
    verdicts += decoder.drain()
    assert sorted(v.seq for v in verdicts) == given_seqs


# Real streams.

SHARED = os.environ.get("YOLOV9_SHARED")
needs_clips = pytest.mark.skipif(SHARED is None, reason="YOLOV9_SHARED names no folder with real clips")


def of_file(path: Path) -> Counter[str]:
    source = LibavSource(str(path), realtime=False)
    decoder = Decoder(source.open())
    verdicts = decode(decoder, (unit for unit in source.units() if unit is not None))
    source.close()
    return Counter("shown" if isinstance(v, Shown) else v.reason.name for v in verdicts)


@needs_clips
@pytest.mark.parametrize("name", ["people-indoor", "cars-above", "street", "motorway-h265"])
def test_real_clips_decode_without_a_drop(name: str) -> None:
    counts = of_file(Path(SHARED or "") / "clips" / f"{name}.mp4")
    assert set(counts) == {"shown"}


@needs_clips
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openh264_BA_MW_D_IDR_LOST", {"AWAITING_KEYFRAME": 27, "shown": 70}),
        ("openh264_BA_MW_D_P_LOST", {"shown": 71, "DAMAGED": 1, "AWAITING_KEYFRAME": 27}),
        ("openh264_Error_I_P", {"DAMAGED": 3, "AWAITING_KEYFRAME": 2, "shown": 1}),
    ],
)
def test_really_damaged_streams_show_clean_pictures_only(name: str, expected: dict[str, int]) -> None:
    assert of_file(Path(SHARED or "") / "clips" / "damaged" / f"{name}.264") == expected
