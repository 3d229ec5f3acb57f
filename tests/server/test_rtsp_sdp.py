"""Session descriptions as cameras write them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.rtsp.sdp import SdpError, UnsupportedMedia, join_control, select_video

URL = "rtsp://cam:8554/live"
SPS = bytes.fromhex("6742c01fda014016e840000003004000000c83c60ca8")
PPS = bytes.fromhex("68ce0fc8")
SPROP = ",".join(base64.b64encode(nal).decode() for nal in (SPS, PPS))
H264 = f"""v=0
o=- 1 1 IN IP4 0.0.0.0
s=camera
t=0 0
a=control:*
m=audio 0 RTP/AVP 0
a=control:audio
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1; profile-level-id=42C01F; sprop-parameter-sets={SPROP}
a=framerate:25.0
a=control:trackID=1
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\r\n\r\n"])
def test_the_usual_camera(newline: str) -> None:
    track = select_video(H264.replace("\n", newline).encode(), URL)
    assert (track.codec, track.payload_type, track.clock_rate, track.fps) == ("h264", 96, 90_000, 25.0)
    assert track.control == "rtsp://cam:8554/live/trackID=1"
    assert track.aggregate == URL
    assert track.parameter_sets == (SPS, PPS)
    assert track.extradata == b"\0\0\0\1" + SPS + b"\0\0\0\1" + PPS
    assert track.play_range == "npt=0.000-"


def test_h265_parameter_sets_and_now_range() -> None:
    vps, sps, pps = (bytes([kind << 1, 1, 7, kind]) for kind in (32, 33, 34))
    sets = ";".join(
        f"sprop-{name}={base64.b64encode(nal).decode().rstrip('=')}"
        for name, nal in (("pps", pps), ("vps", vps), ("sps", sps))
    )
    sdp = f"v=0\na=range:npt=now-\nm=video 0 RTP/AVP 98\na=rtpmap:98 hevc/90000\na=fmtp:98 {sets}\n"
    sdp += "a=x-framerate:30000/1001"
    track = select_video(sdp.encode(), URL)
    assert track.codec == "hevc"
    assert track.parameter_sets == (vps, sps, pps), "in the order of the decoder, whatever the camera's order"
    assert track.fps == pytest.approx(29.97, abs=0.001)
    assert track.play_range == "npt=now-"
    assert track.control == URL, "no control attribute: the session's own address"


def test_static_jpeg() -> None:
    track = select_video(b"m=video 0 RTP/AVP 26\n", URL)
    assert (track.codec, track.payload_type, track.clock_rate, track.extradata) == ("mjpeg", 26, 90_000, b"")


def test_first_supported_of_several_tracks() -> None:
    sdp = (
        "m=video 0 RTP/AVP 31\na=control:old\nm=video 0 RTP/SAVP 96\na=rtpmap:96 H264/90000\na=control:secret\n"
        "m=video 0 RTP/AVP 97 96\na=rtpmap:97 VP8/90000\na=rtpmap:96 H264/90000\na=control:main\n"
        "m=video 0 RTP/AVP 99\na=rtpmap:99 H264/90000\na=control:sub\n"
    )
    track = select_video(sdp.encode(), URL)
    assert (track.control, track.payload_type) == (URL + "/main", 96)


@pytest.mark.parametrize(
    ("sdp", "named"),
    [
        ("m=video 0 RTP/AVP 31\n", "H261"),
        ("m=video 0 RTP/AVP 96\na=rtpmap:96 VP9/90000\n", "VP9"),
        ("m=video 0 RTP/SAVP 96\na=rtpmap:96 H264/90000\n", "RTP/SAVP"),
        ("m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=2\n", "packetization-mode 2"),
        ("m=video 0 RTP/AVP 96\na=rtpmap:96 H265/90000\na=fmtp:96 sprop-max-don-diff=2\n", "sprop-max-don-diff"),
        ("m=audio 0 RTP/AVP 0\n", "no video"),
    ],
)
def test_unsupported_is_named(sdp: str, named: str) -> None:
    with pytest.raises(UnsupportedMedia, match=named):
        select_video(sdp.encode(), URL)


def test_what_is_no_description_is_an_error() -> None:
    with pytest.raises(SdpError, match="no session description"):
        select_video(b"<html>hello</html>", URL)
    with pytest.raises(SdpError):
        select_video(b"", URL)


@pytest.mark.parametrize(
    ("base", "control", "expected"),
    [
        ("rtsp://c/live", "*", "rtsp://c/live"),
        ("rtsp://c/live", None, "rtsp://c/live"),
        ("rtsp://c/live/", "trackID=0", "rtsp://c/live/trackID=0"),
        ("rtsp://c/live", "/trackID=0", "rtsp://c/live/trackID=0"),
        ("rtsp://c/cam?channel=1&subtype=0", "trackID=0", "rtsp://c/cam?channel=1&subtype=0/trackID=0"),
        ("rtsp://c/live", "?ctype=video", "rtsp://c/live?ctype=video"),
        ("rtsp://c/live", "rtsp://10.0.0.1/other/track1", "rtsp://10.0.0.1/other/track1"),
    ],
)
def test_control_addresses(base: str, control: str | None, expected: str) -> None:
    assert join_control(base, control) == expected


@pytest.mark.parametrize(
    ("content_base", "session_control", "expected"),
    [
        ("rtsp://cam/base/", "*", "rtsp://cam/base/t"),
        ("/base", "*", "rtsp://cam:8554/base/t"),
        ("nonsense", "*", "rtsp://cam:8554/live/t"),
        (None, "rtsp://cam/session", "rtsp://cam/session/t"),
        ("rtsp://cam/base", "stream=0", "rtsp://cam/base/t"),
    ],
)
def test_bases(content_base: str | None, session_control: str, expected: str) -> None:
    sdp = f"a=control:{session_control}\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=control:t\n"
    assert select_video(sdp.encode(), URL, content_base).control == expected


def test_broken_details_are_left_out() -> None:
    sdp = (
        "m=video 0 RTP/AVP x 96 999\na=rtpmap:96 H264\na=fmtp:96 sprop-parameter-sets=!!!,AAAA,"
        + base64.b64encode(b"\0\0\0\1" + PPS).decode()
        + "\na=framerate:nan\na=rtpmap:\nz\n"
    )
    track = select_video(sdp.encode(), URL)
    assert (track.clock_rate, track.parameter_sets, track.fps) == (90_000, (PPS,), 0.0)


@given(
    st.one_of(
        st.binary(max_size=400), st.text(max_size=400).map(lambda text: ("m=video 0 RTP/AVP 96\na=" + text).encode())
    )
)
def test_never_anything_but_the_documented_error(data: bytes) -> None:
    try:
        select_video(data, URL, data.decode("utf-8", "replace"))
    except SdpError:
        pass
