"""RTSP messages and interleaved frames out of a byte stream cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ingest.rtsp.messages import (
    MAX_BODY_BYTES,
    MAX_GARBAGE_BYTES,
    MAX_HEADER_BYTES,
    Interleaved,
    Item,
    MessageReader,
    ProtocolError,
    Response,
    ServerRequest,
    build_request,
    build_response,
)

RESPONSE = b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nContent-Base: rtsp://c/\r\nContent-length:5\r\n\r\nhello"
RTP = bytes([0x80, 96]) + bytes(range(30))


def frame(channel: int, data: bytes) -> bytes:
    return b"$" + bytes([channel]) + len(data).to_bytes(2, "big") + data


def shown(items: list[Item]) -> list[object]:
    out: list[object] = []
    for item in items:
        if isinstance(item, Interleaved):
            out.append((item.channel, bytes(item.data)))
        elif isinstance(item, Response):
            out.append((item.status, item.headers.cseq, item.body))
        else:
            out.append((item.method, item.headers.cseq, item.body))
    return out


def read(reader: MessageReader, *chunks: bytes) -> list[object]:
    return [item for chunk in chunks for item in shown(reader.feed(chunk))]


def test_response_fields() -> None:
    (response,) = MessageReader().feed(RESPONSE)
    assert isinstance(response, Response)
    assert (response.status, response.reason, response.body) == (200, "OK", b"hello")
    assert response.headers.get("content-base") == "rtsp://c/"
    assert response.headers.get("nothing") is None


def test_line_feeds_only_folding_and_repeated_headers() -> None:
    (response,) = MessageReader().feed(
        b"\r\n\r\nRTSP/1.0 401 Unauthorized\nCSeq:  7 \nWWW-Authenticate: Basic realm=a\n"
        b"www-authenticate: Digest realm=b,\n\tnonce=c\nbroken line\n\n"
    )
    assert isinstance(response, Response)
    assert response.headers.cseq == 7
    assert response.headers.get_all("WWW-Authenticate") == ["Basic realm=a", "Digest realm=b, nonce=c"]


def test_server_request_and_its_answer() -> None:
    (request,) = MessageReader().feed(b"ANNOUNCE rtsp://c/1 RTSP/1.0\r\nCSeq: 9\r\nContent-Length: 2\r\n\r\nhi")
    assert isinstance(request, ServerRequest)
    assert (request.method, request.uri, request.body) == ("ANNOUNCE", "rtsp://c/1", b"hi")
    assert build_response(request, 200, "OK") == b"RTSP/1.0 200 OK\r\nCSeq: 9\r\n\r\n"


@given(
    st.lists(st.sampled_from([RESPONSE, frame(0, RTP), frame(1, RTP[:8]), frame(0, b""), b"\r\n"]), max_size=12),
    st.data(),
)
def test_any_cut_gives_the_same_messages(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, cut = MessageReader(), MessageReader()
    for reader in (whole, cut):
        reader.allow_channels(0, 1)
    expected = read(whole, stream)
    assert read(cut, *chunks) == expected
    assert len(expected) == sum(message != b"\r\n" for message in messages)
    assert cut.skipped_bytes == 0


@pytest.mark.parametrize("garbage", [b"\x00\x01\x02", b"$\x05\x00\x10xx", b"\xff" * 500, b"junk$\x00\x00\x04zzzz"])
def test_garbage_between_frames_costs_only_itself(garbage: bytes) -> None:
    reader = MessageReader()
    reader.allow_channels(0, 1)
    stream = frame(0, RTP) + garbage + frame(0, RTP) + garbage + RESPONSE + frame(1, RTP)
    assert read(reader, stream) == [(0, RTP), (0, RTP), (200, 3, b"hello"), (1, RTP)]
    assert reader.skipped_bytes == 2 * len(garbage)


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_answer_behind_garbage_is_seen_wherever_it_is_cut(cut: int) -> None:
    """Found by fuzzing: its first word, cut off by the end of a segment, was skipped as garbage."""
    reader = MessageReader()
    reader.allow_channels(0, 1)
    answer = b"RTSP/1.0 200 OK\r\nCSeq: 9\r\n\r\n"
    items = reader.feed(b"\xee\xeeR" + answer[:cut]) + reader.feed(answer[cut:])
    (response,) = items
    assert isinstance(response, Response)
    assert response.headers.cseq == 9
    assert reader.skipped_bytes == 3


def test_before_setup_garbage_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="does not answer in RTSP"):
        MessageReader().feed(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    with pytest.raises(ProtocolError, match="HTTP"):
        MessageReader().feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_endless_garbage_is_an_error() -> None:
    reader = MessageReader()
    reader.allow_channels(0, 1)

    def flood() -> None:
        for _ in range(MAX_GARBAGE_BYTES // 50_000 + 2):
            assert reader.feed(b"\xee" * 50_000) == []

    with pytest.raises(ProtocolError, match="followed"):
        flood()


@pytest.mark.parametrize(
    "data",
    [
        b"RTSP/1.0 200 OK\r\n" + b"X: y\r\n" * (MAX_HEADER_BYTES // 6 + 1),
        b"RTSP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"RTSP/1.0 200 OK\r\nContent-Length: many\r\n\r\n",
        b"RTSP/1.0 2x0 OK\r\n\r\n",
    ],
)
def test_limits(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        MessageReader().feed(data)


def test_a_reason_phrase_cannot_carry_control_characters() -> None:
    (response,) = MessageReader().feed(b"RTSP/1.0 500 bad\x1b[31m\xff" + b"x" * 200 + b"\r\n\r\n")
    assert isinstance(response, Response)
    assert response.reason.isprintable()
    assert len(response.reason) <= 80


def test_request() -> None:
    assert build_request("PLAY", "rtsp://c/1", {"CSeq": "4"}) == b"PLAY rtsp://c/1 RTSP/1.0\r\nCSeq: 4\r\n\r\n"
    with pytest.raises(ValueError, match="control characters"):
        build_request("PLAY", "rtsp://c/1", {"Authorization": "a\r\nInjected: yes"})
    with pytest.raises(ValueError, match="control characters"):
        build_request("PLAY", "rtsp://c/1 x", {})


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_arbitrary_bytes(chunks: list[bytes], playing: bool) -> None:
    reader = MessageReader()
    if playing:
        reader.allow_channels(0, 1)
    try:
        for chunk in chunks:
            reader.feed(b"$\x00" + chunk if playing and len(chunk) % 2 else chunk)
    except ProtocolError:
        pass
