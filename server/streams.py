"""What a stream is, as its owner defines it (`POST /streams`), and what the server tells of it (`GET`)."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

STREAM_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MASK = "***"
NETWORK_SCHEMES = ("rtsp", "rtsps", "rtspt", "http", "https")


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Confidence = Annotated[Finite, Field(ge=0, le=1)]


class StreamFields(BaseModel):
    """Settings that may be changed while a stream runs. `None` in a patch means: leave as it is."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    username: str | None = Field(None, max_length=256, description="User name for the camera (Basic or Digest).")
    password: SecretStr | None = Field(None, max_length=1024, description="Password for the camera. Never given back.")
    transport: Literal["tcp", "udp", "auto"] | None = Field(None, description="RTSP transport; auto tries TCP first.")
    rtsp_client: Literal["native", "libav"] | None = Field(
        None, description="native receives RTP itself (exact arrival times, loss by frame); libav is the fall-back."
    )
    max_fps: Annotated[Finite, Field(gt=0, le=1000)] | None = Field(
        None, description="Detect at most so many frames a second."
    )
    confidence: Confidence | None = Field(None, description="Lowest confidence to report (default .25).")
    class_confidence: dict[str, Confidence] | None = Field(None, description="Lowest confidence of single classes.")
    iou: Confidence | None = Field(None, description="IoU above which NMS removes a box (default .7).")
    classes: list[str] | None = Field(None, description="Report these classes only, by name.")
    weight: Annotated[Finite, Field(gt=0, le=100)] | None = Field(
        None, description="Share of the engine under overload, relative to other streams (default 1)."
    )
    max_staleness_ms: Annotated[Finite, Field(gt=0, le=600_000)] | None = Field(
        None, description="A frame older than this is dropped instead of detected (default 500)."
    )
    track: bool | None = Field(None, description="Follow objects over time.")
    zones: list[dict[str, Any]] | None = Field(None, description="Named polygons.")
    lines: list[dict[str, Any]] | None = Field(None, description="Named counting lines.")
    loop: bool | None = Field(None, description="Files: start again at the end.")
    every_frame: bool | None = Field(
        None, description="Files: detect every frame, first in, first out, as fast as it goes."
    )
    realtime: bool | None = Field(None, description="Files: paced by their time stamps (default, unless every_frame).")


class StreamPatch(StreamFields):
    """`PATCH /streams/{id}`: only the fields that change."""

    url: str | None = Field(None, max_length=4096, description="A new address for the same stream.")


class StreamDefinition(StreamFields):
    """`POST /streams`. User information inside `url` is moved to `username` and `password`."""

    url: str = Field(
        max_length=4096, min_length=1, description="rtsp(s)://, http(s):// or the path of a file below a media folder."
    )
    id: str = Field(
        default_factory=lambda: secrets.token_hex(4),
        pattern=STREAM_ID,
        description="Name of the stream; made up if missing.",
    )

    @model_validator(mode="after")
    def _split_credentials(self) -> StreamDefinition:
        bare, user, password = split_credentials(self.url)
        self.url = bare
        if user is not None and self.username is None:
            self.username = user
        if password is not None and self.password is None:
            self.password = SecretStr(password)
        return self

    def patched(self, patch: StreamPatch) -> StreamDefinition:
        """A new definition with the patch's set fields; validates again."""
        data = reveal(self) | reveal(patch, exclude_unset=True)
        return StreamDefinition.model_validate(data)


def reveal(model: StreamFields, **options: Any) -> dict[str, Any]:
    """The model as plain data with the password in clear: for the store and the camera's process only."""
    data = model.model_dump(**options)
    if isinstance(data.get("password"), SecretStr):
        data["password"] = data["password"].get_secret_value()
    return data


def split_credentials(url: str) -> tuple[str, str | None, str | None]:
    """(url without user information, user, password). A password may hold `@`, `:` and `/` unescaped: the last `@`
    before the path's host counts. What has no `://` is a path and is returned as it is."""
    match = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", url, re.S)
    if match is None:
        return url, None, None
    scheme, rest = match.groups()
    at = _last_userinfo_at(rest)
    if at < 0:
        return url, None, None
    userinfo, bare = rest[:at], rest[at + 1 :]
    user, colon, password = userinfo.partition(":")
    return f"{scheme}://{bare}", unquote(user), unquote(password) if colon else None


def _last_userinfo_at(rest: str) -> int:
    """Index of the `@` that ends the user information, or -1. An `@` after the host (path, query) does not count."""
    authority_end = re.search(r"[/?#]", rest)
    if authority_end is None:
        return rest.rfind("@")
    at = rest.rfind("@", 0, authority_end.start())
    if at >= 0:
        return at
    # No `@` before the first slash: an unescaped slash may stand in the password (user:pa/ss@host/path).
    if ":" in rest[: authority_end.start()] and not re.match(r"^[^:/?#@]*:\d+$", rest[: authority_end.start()]):
        return rest.rfind("@")
    return -1


def masked_url(url: str) -> str:
    """The URL without user information and with the values of query parameters that look like secrets masked."""
    bare, user, password = split_credentials(url)
    if "://" not in bare:
        return bare
    parts = urlsplit(bare)
    query = re.sub(
        r"((?:^|&)[^=&]*(?:pass|pwd|token|secret|key|auth|sig)[^=&]*)=[^&]*", rf"\1={MASK}", parts.query, flags=re.I
    )
    netloc = parts.netloc if user is None and password is None else f"{MASK}@{parts.netloc}"
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


class StreamStatus(BaseModel):
    """What the server knows of a stream now."""

    state: Literal["connecting", "running", "backoff", "failed", "stopped"]
    reason: str | None = Field(None, description="Why it is not running; stays until it runs again.")
    detail: str | None = None
    retry_in_s: float | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    input_width: int | None = None
    input_height: int | None = None
    fps: float | None = Field(None, description="As the source states it.")
    fps_received: float | None = Field(None, description="Measured over the last seconds.")
    fps_detected: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    last_frame_age_s: float | None = None
    transport: str | None = None
    decoder: str | None = None
    client: str | None = None
    reconnects: int = 0
    received_at: str | None = Field(None, description="Wall clock of the newest frame.")


class LedgerView(BaseModel):
    """received = completed + in_flight + the sum of dropped, at every read."""

    received: int
    completed: int
    in_flight: int
    dropped: dict[str, dict[str, int]] = Field(description="stage -> reason -> frames")
