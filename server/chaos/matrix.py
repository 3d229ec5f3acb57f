"""The table: which fault, over which transports and codecs, and what the server has to make of it. Data, nothing else.

Every row has the same four promises behind it, which no row needs to repeat: the ledgers balance at every read, each
frame is in the end completed or dropped for a reason, no result is of a torn picture, and the healthy cameras beside it
keep their p99 latency. Where a row is an exception, it says so and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

OPEN_S = 1.5
READ_S = 1.5
BACKOFF_S = 0.5
BACKOFF_MAX_S = 2.0
"""The server's time-outs and pauses while the matrix runs: shorter than a user's, so that it does not take hours. What
depends on them is stated through them."""

AT_ONCE_S = 1.0
"""What needs no time-out to be seen."""
STALL_S = READ_S + 1.0
NO_ANSWER_S = OPEN_S + 1.0
HEARTBEAT_S = 5.0 + 2.0
"""A process that gives no sign of life for 5 s is taken for hung; looked at once a second."""
BLIND_S = 30.0 + 2.0
"""A connection of which no frame can be shown for 30 s is given up."""
HANG_S = 5.0 + 2.0
"""A batch may take 5 s, or twenty times its usual time if that is more."""

LOCK_S = 2.0 + 1.0
"""A lock of the data base is waited for 2 s."""

Camera = Literal["own", "gst", "none"]
Transport = Literal["tcp", "udp"]
Codec = Literal["h264", "hevc"]
Start = Literal["running", "opening", "file"]
TCP: tuple[Transport, ...] = ("tcp",)
UDP: tuple[Transport, ...] = ("udp",)
BOTH: tuple[Transport, ...] = ("tcp", "udp")
H264: tuple[Codec, ...] = ("h264",)
HEVC: tuple[Codec, ...] = ("hevc",)
CODECS: tuple[Codec, ...] = ("h264", "hevc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`state` and `reasons`: what the stream shows while the fault lasts; `running` means that it must not be lost."""

    fault: str
    what: str
    state: Literal["backoff", "running", "stopped"] = "running"
    reasons: tuple[str, ...] = ()
    """One of these."""
    seen_s: float = AT_ONCE_S
    """The state must show within it."""
    back: Literal["backoff", "soon", "never"] = "backoff"
    """A result again, once the fault is over: within 1.5 x the longest pause announced + 2 s; within `soon_s`."""
    soon_s: float = 3.0
    drops: tuple[str, ...] = ()
    """stage/reason: what the ledger has to show in the end."""
    start: Start = "running"
    """The camera runs before the fault comes, or is opened into it."""
    transports: tuple[Transport, ...] = TCP
    codecs: tuple[Codec, ...] = H264
    camera: Camera = "own"
    momentary: bool = False
    """Over as soon as it has begun: the return counts from when the loss was seen."""
    hold_s: float = 3.0
    """How long the fault lasts at least."""
    gop: int = 10
    torn: Literal["none", "measured"] = "none"
    """`measured`: flipped bits may decode without a complaint; the share is stated."""
    harms: bool = False
    """Frames that cannot be decoded belong to the fault, of whatever kind the decoder finds them."""
    reconnects: bool = False
    """A running stream may be opened anew meanwhile."""
    witness: bool = True
    """The healthy cameras' latency is held against their own without the fault. False: it is in what all share."""
    errors: bool = False
    """Results of status `error` are what the fault is about."""
    signs: Literal["stream", "ledger", "readiness", "act"] = "stream"
    """What tells of the fault: the stream's state (a good result, if that is to be `running`), the drops named here in
    its ledger, `/readyz`, or what the act itself asks the server."""
    needs: Literal["nothing", "network", "mount"] = "nothing"
    """A namespace of its own: for a packet filter, or for a small file system."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the result: a row, over one transport, with one codec."""

    row: Row
    transport: Transport
    codec: Codec

    @property
    def name(self) -> str:
        return f"{self.row.fault}-{self.transport}-{self.codec}"


MATRIX: tuple[Row, ...] = (
    # The connection.
    Row(fault="refused", what="nobody listens at the address", start="opening", state="backoff", reasons=("refused",)),
    Row(fault="dns", what="the name does not resolve; the address is corrected later", start="opening", state="backoff",
        reasons=("unreachable",), seen_s=NO_ANSWER_S, back="soon"),
    Row(fault="black_hole", what="packets to the address vanish", start="opening", state="backoff",
        reasons=("timeout",), seen_s=NO_ANSWER_S),
    Row(fault="mute", what="it accepts connections and never answers", start="opening", state="backoff",
        reasons=("timeout",), seen_s=NO_ANSWER_S),
    Row(fault="wrong_password", what="the camera has another password; it is corrected there", start="opening",
        state="backoff", reasons=("auth",)),
    Row(fault="not_found", what="404; the address is corrected later", start="opening", state="backoff",
        reasons=("not_found",), back="soon"),
    Row(fault="fin", momentary=True, what="the camera ends the connection in order", state="backoff",
        reasons=("ended",), transports=BOTH, codecs=CODECS),
    Row(fault="rst", momentary=True, what="the camera resets the connection", state="backoff", reasons=("ended",
        "error"), transports=BOTH),
    Row(fault="bye", momentary=True, what="RTCP BYE, the connection stays open", state="backoff", reasons=("ended",),
        transports=BOTH),
    Row(fault="power_cut", what="off for some seconds, then on again", state="backoff", reasons=("refused",),
        seen_s=BACKOFF_S * 1.25 + AT_ONCE_S, transports=BOTH, hold_s=5.0),
    Row(fault="stall", what="connections stay open, no packet comes", state="backoff", reasons=("stalled",),
        seen_s=STALL_S, transports=BOTH, codecs=CODECS),
    Row(fault="flapping", what="the connection is cut every 2 s", state="backoff", reasons=("ended",), hold_s=300.0,
        transports=BOTH),
    Row(fault="herd", what="50 cameras die at once and return at once; their attempts are spread by chance",
        state="backoff", reasons=("refused", "ended"), seen_s=3.0, hold_s=6.0, camera="none", witness=False,
        signs="act"),
    # What the packets carry.
    Row(fault="loss5", what="5 % of the packets are lost", signs="ledger", drops=("ingest/damaged",), hold_s=8.0,
        transports=BOTH, codecs=CODECS),
    Row(fault="loss30", what="30 % of the packets are lost", signs="ledger", drops=("ingest/damaged",), hold_s=8.0,
        transports=BOTH, codecs=CODECS, reconnects=True),
    Row(fault="reorder", what="every third packet comes behind its successor", transports=UDP, codecs=CODECS),
    Row(fault="corrupt", what="bytes of 2 % of the packets are changed on the way; no receiver can tell by the headers",
        hold_s=8.0, transports=BOTH, codecs=CODECS, torn="measured", reconnects=True),
    Row(fault="damaged_file", what="a file with overwritten, missing and cut frames", start="file", state="stopped",
        reasons=("ended",), seen_s=30.0, back="never", camera="none", codecs=CODECS, torn="measured"),
    Row(fault="resolution", what="the picture's size changes in the running session", codecs=CODECS, transports=BOTH),
    Row(fault="codec_to_hevc", momentary=True, what="H.265 comes where H.264 was agreed on", state="backoff",
        reasons=("codec", "decode", "protocol"), seen_s=BLIND_S),
    Row(fault="codec_to_h264", momentary=True, what="H.264 comes where H.265 was agreed on", codecs=HEVC,
        state="backoff", reasons=("codec", "decode", "protocol"), seen_s=BLIND_S),
    Row(fault="late_sets", what="no parameter sets, in SDP or stream, before the second keyframe", harms=True,
        start="opening", seen_s=4.0, codecs=CODECS),
    Row(fault="long_gop", what="a keyframe every 300 frames only, joined in between", start="opening", gop=300,
        seen_s=32.0, drops=("ingest/awaiting_keyframe",)),
    Row(fault="frozen", what="the picture never changes", codecs=CODECS),
    # Clocks.
    Row(fault="pts_forward", what="time stamps jump an hour ahead", transports=BOTH),
    Row(fault="pts_back", what="time stamps jump an hour back", transports=BOTH),
    Row(fault="pts_small_steps", what="time stamps jump back by two frames, again and again"),
    Row(fault="lying_rate", what="the stream states 25 frames a second and sends 8", start="opening", seen_s=3.0),
    Row(fault="wrong_reports", what="sender reports are wrong by 6 hours", start="opening", seen_s=3.0,
        transports=BOTH),
    # Processes.
    Row(fault="process_killed", momentary=True, what="SIGKILL to the process that receives the camera", state="backoff",
        reasons=("process_lost",)),
    Row(fault="process_stopped", momentary=True, what="SIGSTOP to the process that receives the camera",
        state="backoff", reasons=("process_lost",), seen_s=HEARTBEAT_S),
    # A camera that is none of ours.
    Row(fault="gst_plays", what="gst-rtsp-server plays, nothing is wrong", camera="gst", transports=BOTH,
        codecs=CODECS),
    Row(fault="gst_killed", what="SIGKILL to the camera, which starts again", camera="gst", state="backoff",
        reasons=("ended", "refused", "error"), transports=BOTH),
    Row(fault="gst_stopped", what="SIGSTOP to the camera, which goes on later", camera="gst", state="backoff",
        reasons=("stalled", "timeout"), seen_s=STALL_S, transports=BOTH),
    Row(fault="gst_password", what="wrong password for gst-rtsp-server, corrected later", camera="gst", start="opening",
        state="backoff", reasons=("auth",), back="soon"),
    Row(fault="gst_not_found", what="404 from gst-rtsp-server, corrected later", camera="gst", start="opening",
        state="backoff", reasons=("not_found",), back="soon"),
    # Packet filters in a network namespace.
    Row(fault="net_loss5", what="the kernel drops 5 % of the datagrams to the camera's client", camera="gst",
        transports=UDP, codecs=CODECS, signs="ledger", drops=("ingest/damaged",), hold_s=8.0, needs="network"),
    Row(fault="net_loss30", what="the kernel drops 30 % of the datagrams", camera="gst", transports=UDP, codecs=CODECS,
        signs="ledger", drops=("ingest/damaged",), hold_s=8.0, needs="network", reconnects=True),
    Row(fault="net_silence", what="the kernel drops all datagrams", camera="gst", transports=UDP, state="backoff",
        reasons=("stalled",), seen_s=STALL_S, needs="network"),
    Row(fault="net_black_hole", what="the kernel drops everything from the camera's port, both ways", camera="gst",
        transports=BOTH, state="backoff", reasons=("stalled", "timeout"), seen_s=STALL_S, needs="network"),
    # The engine: what all share. Cameras must not be reconnected for it.
    Row(fault="engine_raises", what="the engine raises at every batch, until its process is replaced", momentary=True,
        witness=False, errors=True, signs="readiness", back="soon", soon_s=15.0, drops=("inference/engine_error",)),
    Row(fault="engine_nan", what="the engine gives NaN, until its process is replaced", momentary=True, witness=False,
        errors=True, signs="readiness", back="soon", soon_s=15.0, drops=("inference/engine_error",)),
    Row(fault="engine_hangs", what="the engine does not come back, until its process is replaced", momentary=True,
        witness=False, errors=True, signs="readiness", seen_s=HANG_S, back="soon", soon_s=15.0,
        drops=("inference/hung",)),
    Row(fault="engine_broken", what="the engine raises, in every new process too; tried again every 30 s",
        witness=False, errors=True, signs="readiness", back="soon", soon_s=45.0, hold_s=8.0,
        drops=("inference/engine_error",)),
    Row(fault="worker_killed", what="SIGKILL to the engine's process", witness=False, errors=True, signs="readiness",
        back="soon", soon_s=10.0),
    Row(fault="worker_stopped", what="SIGSTOP to the engine's process", witness=False, errors=True, signs="readiness",
        seen_s=HANG_S, back="soon", soon_s=15.0),
    # The machine.
    Row(fault="database_locked", what="another process holds the data base: changes get 503, cameras go on",
        seen_s=LOCK_S, signs="act", back="soon"),
    Row(fault="disk_full", what="no space left for the data base: changes get 503, cameras go on", signs="act",
        back="soon", needs="mount"),
    Row(fault="disk_read_only", what="another server starts on a read-only file system: it says so and ends",
        signs="act", seen_s=30.0, back="soon", needs="mount"),
    Row(fault="no_shared_memory", what="no memory for another camera's pictures: 503 for it, the others go on",
        signs="act", back="soon"),
    Row(fault="no_descriptors", what="file descriptors exhausted: new ones are refused, cameras go on", seen_s=2.0,
        signs="act", back="soon"),
    # Clients.
    Row(fault="clients_never_read", what="20 WebSocket clients that never read; their memory is bounded", hold_s=8.0,
        signs="act"),
    Row(fault="clients_garbage", what="bytes that are no HTTP, frames that are no WebSocket", hold_s=6.0, signs="act"),
    Row(fault="clients_large", what="messages and bodies of 1 MB and more", hold_s=6.0, signs="act"),
    Row(fault="clients_half_open", what="200 connections that send half a request and wait", hold_s=6.0, signs="act"),
    Row(fault="clients_storm", what="1,000 connections a second", hold_s=6.0, signs="act"),
)  # fmt: skip


def cases(rows: tuple[Row, ...] = MATRIX) -> Iterator[Case]:
    """The table, row by row."""
    for row in rows:
        for transport in row.transports:
            for codec in row.codecs:
                yield Case(row, transport, codec)


def chosen(only: list[str]) -> list[Case]:
    """The cases that bear one of these names or belong to one of these faults; all without names. ValueError."""
    everything = list(cases())
    known = {case.name for case in everything} | {case.row.fault for case in everything}
    for name in only:
        if name not in known:
            raise ValueError(f"there is no fault {name!r}; --list shows them")
    return [case for case in everything if not only or case.name in only or case.row.fault in only]
