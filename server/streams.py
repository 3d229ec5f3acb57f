"""What a stream is, as its owner defines it (`POST /streams`), and what the server tells of it (`GET`)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from server.addresses import MASK, masked_url, may_hold_a_password, split_credentials
from server.analytics.shapes import Line, Zone, unique_names

STREAM_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def _printable(value: str) -> str:
    """No control characters: they would end a header line on the way to the camera, or a path. No lone surrogates:
    they cannot be stored."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid text") from None
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("must not hold control characters")
    return value


def _printable_secret(value: SecretStr) -> SecretStr:
    _printable(value.get_secret_value())
    return value


def _clear_credentials(url: str) -> str:
    """User information that can be told from the rest, without percent-encoded control characters."""
    bare, user, password = split_credentials(url)
    if user is not None and may_hold_a_password(bare):
        raise ValueError("where the password ends is not clear; write `@` as %40 and `/` as %2F")
    try:
        _printable(f"{user or ''}{password or ''}")
    except ValueError as error:
        raise ValueError(f"user name and password {error}") from None
    return url


def _not_null(schema: dict[str, Any]) -> None:
    """For OpenAPI: may be left out, but not be null."""
    schema |= next(choice for choice in schema.pop("anyOf") if choice.get("type") != "null")
    schema.pop("default", None)


_PRINTABLE = Field(json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f]*$"})
Text = Annotated[str, AfterValidator(_printable), _PRINTABLE]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Confidence = Annotated[Finite, Field(ge=0, le=1)]
Address = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=4096),
    AfterValidator(_printable),
    AfterValidator(_clear_credentials),
    Field(json_schema_extra={"pattern": r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$"}),
]
ADDRESS = (
    "rtsp(s)://, http(s):// (file, HLS, MJPEG), rtmp://, srt://, udp:// and rtp:// (MPEG-TS), v4l2:/dev/video0, the "
    "path of a file below a media folder, or, where the server allows it, `gst: ... ! appsink`."
)


def _without_user_information(url: str) -> str:
    if split_credentials(url)[1] is not None:
        raise ValueError("must hold no user name or password: those of the stream are used")
    return url


class StreamFields(BaseModel):
    """Settings that may be changed while a stream runs. `null` means: the default."""

    # A validation error must not carry its input: that may be a password. Numbers are numbers, not strings of digits.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True)

    username: Annotated[Text, Field(max_length=256)] | None = Field(
        None, description="User name for the camera (Basic or Digest)."
    )
    password: (
        Annotated[SecretStr, Field(max_length=1024, strict=False), AfterValidator(_printable_secret), _PRINTABLE] | None
    ) = Field(None, description="Password for the camera. Never given back.")
    transport: Literal["tcp", "udp", "auto"] | None = Field(None, description="RTSP transport; auto tries TCP first.")
    rtsp_client: Literal["native", "libav"] | None = Field(
        None, description="native receives RTP itself (exact arrival times, loss by frame); libav is the fall-back."
    )
    detect_url: Annotated[Address, AfterValidator(_without_user_information)] | None = Field(
        None,
        description="The camera's sub-stream: opened instead of `url`, for detection and pictures alike. Same camera, "
        "same user name and password.",
    )
    decoder: Literal["auto", "software", "cuda", "vaapi", "qsv"] | None = Field(
        None,
        description="What decodes: auto takes hardware that is there; what cannot be had falls back to software and "
        "says so in `status.decoder_detail`.",
    )
    max_fps: Annotated[Finite, Field(gt=0, le=1000)] | None = Field(
        None, description="Detect at most so many frames a second."
    )
    confidence: Confidence | None = Field(None, description="Lowest confidence to report (default .25).")
    class_confidence: dict[Text, Confidence] | None = Field(None, description="Lowest confidence of single classes.")
    iou: Confidence | None = Field(None, description="IoU above which NMS removes a box (default .7).")
    classes: list[Text] | None = Field(None, description="Report these classes only, by name.")
    weight: Annotated[Finite, Field(gt=0, le=100)] | None = Field(
        None, description="Share of the engine under overload, relative to other streams (default 1)."
    )
    max_staleness_ms: Annotated[Finite, Field(gt=0, le=600_000)] | None = Field(
        None, description="A frame older than this is dropped instead of detected (default 500)."
    )
    track: bool | None = Field(
        None, description="Follow objects over time (default). Zones and lines need it: with any of them it is on."
    )
    zones: Annotated[list[Zone], Field(max_length=256)] | None = Field(None, description="Named polygons.")
    lines: Annotated[list[Line], Field(max_length=256)] | None = Field(None, description="Named counting lines.")
    loop: bool | None = Field(None, description="Files: start again at the end.")
    every_frame: bool | None = Field(
        None, description="Files: detect every frame, first in, first out, as fast as it goes."
    )
    realtime: bool | None = Field(None, description="Files: paced by their time stamps (default, unless every_frame).")

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        unique_names(self.zones or (), self.lines or ())
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """For logs: no secrets inside an address either. A user name is half of the credentials."""
        for name, value in super().__repr_args__():
            if name == "username" and value is not None:
                value = MASK
            yield name, masked_url(value) if name in ("url", "detect_url") and isinstance(value, str) else value


class StreamPatch(StreamFields):
    """`PATCH /streams/{id}`: only the fields that change; `null` goes back to the default."""

    url: Address | None = Field(
        None, description=f"A new address for the same stream: {ADDRESS}", json_schema_extra=_not_null
    )

    @field_validator("url")
    @classmethod
    def _has_address(cls, value: str | None) -> str:
        """Runs on what was sent only: a stream cannot go back to no address."""
        if value is None:
            raise ValueError("must not be null")
        return value


class StreamDefinition(StreamFields):
    """`POST /streams`. User information inside `url` is moved to `username` and `password`."""

    url: Address = Field(description=ADDRESS)
    id: Annotated[str, StringConstraints(strip_whitespace=True, pattern=STREAM_ID)] = Field(
        default_factory=lambda: secrets.token_hex(4), description="Name of the stream; made up if missing."
    )

    @model_validator(mode="after")
    def _split_credentials(self) -> StreamDefinition:
        self.url, user, password = split_credentials(self.url)
        if user is not None and self.username is None:
            self.username = user
        if password is not None and self.password is None:
            self.password = SecretStr(password)
        return self

    def patched(self, patch: StreamPatch) -> StreamDefinition:
        """A new definition with the patch's set fields. Credentials inside the patch's `url` replace the old ones,
        unless the patch names others."""
        data = reveal(self)
        changes = reveal(patch, exclude_unset=True)
        if patch.url is not None and split_credentials(patch.url)[1] is not None:
            data["username"] = data["password"] = None
        return StreamDefinition.model_validate(data | changes)


def reveal(model: StreamFields, **options: Any) -> dict[str, Any]:
    """The model as plain data with the password in clear: for the store and the camera's process only."""
    data = model.model_dump(**options)
    if isinstance(data.get("password"), SecretStr):
        data["password"] = data["password"].get_secret_value()
    return data


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
    decoder: str | None = Field(None, description="software, cuda, qsv, ...: what decodes now.")
    decoder_detail: str | None = Field(None, description="Why it is not the decoder that was asked for.")
    client: str | None = None
    missing_classes: list[str] = Field(
        default_factory=list, description="Classes that the stream asks for and the model does not have."
    )
    reconnects: int = 0
    received_at: str | None = Field(None, description="Wall clock of the newest frame.")


class LedgerView(BaseModel):
    """received = completed + in_flight + the sum of dropped, at every read."""

    received: int
    completed: int
    in_flight: int
    dropped: dict[str, dict[str, int]] = Field(description="stage -> reason -> frames")
