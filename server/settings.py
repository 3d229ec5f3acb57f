"""The server's settings: options over environment (YOLOV9_...) over a YAML file over the defaults.

Descriptions of the fields are the documentation: `configs/server.yaml` is written from them (`commented_yaml`).
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import to_jsonable_python
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from server.addresses import SOURCE_SCHEMES, split_credentials

ENVIRONMENT_PREFIX = "YOLOV9_"


def _split_at_commas(value: object) -> object:
    return [part for piece in value.split(",") if (part := piece.strip())] if isinstance(value, str) else value


def _networks(value: object) -> object:
    """ValueError with ipaddress's own words: `10.0.0.1/8 has host bits set`."""
    pieces = _split_at_commas(value)
    return [ipaddress.ip_network(n) if isinstance(n, str) else n for n in pieces] if isinstance(pieces, list) else value


def _json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("is not JSON") from None


CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(_split_at_commas)]
Networks = Annotated[list[InstanceOf[IPv4Network] | InstanceOf[IPv6Network]], NoDecode, BeforeValidator(_networks)]
NO_SOURCES = [ipaddress.ip_network(text) for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")]
"""Link-local addresses and the metadata services of clouds, which give credentials to whoever asks."""


class SettingsError(ValueError):
    """Settings that cannot be used. One sentence for each fault, naming the field; never holds a token."""


class Webhook(BaseModel):
    """Where events are posted to. The address is kept secret, too: many services put a key into it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Its place in the events is kept under it."""
    url: SecretStr
    secret: SecretStr = Field(min_length=16)
    """Signs what is sent."""
    streams: list[str] | None = None
    classes: list[str] | None = None

    @field_validator("url")
    @classmethod
    def _usable_url(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            usable = usable and parts.username is None and all(33 <= ord(character) < 127 for character in text)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("must be http:// or https:// with a host, without user and password")
        return value


class ServerSettings(BaseSettings):
    """All settings of one server. Use `load_settings`, which also reads the file and explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True
    )

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; without a token only a loopback address is taken."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    token: SecretStr | None = Field(
        None, description="Clients must show it (Authorization: Bearer). Better given as YOLOV9_TOKEN than in a file."
    )
    data: Path = Field(Path("yolov9-data"), description="Folder of the data base and of caches.")
    media: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Files below these folders may be streams. In the environment: separated by colons.",
    )
    model: str | None = Field(None, description="Folder of a model bundle, or the name of a packaged model.")
    engine: Literal["auto", "openvino", "onnxruntime", "torch", "tensorrt"] = Field(
        "auto", description="What runs the model; auto takes the fastest that works here."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="What the engine computes in; auto takes the fastest that bundle and device support."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the engine; null: all cores.")
    max_batch: int | None = Field(
        None, ge=1, le=256, description="Largest batch; null: what pays on the device, as the engine says."
    )
    max_delay_ms: float = Field(
        0.0, ge=0, le=1000, description="A waiting frame may be held back so long for a larger batch."
    )
    confidence: float = Field(0.25, ge=0, le=1, description="Lowest confidence to report, where a stream has no other.")
    iou: float = Field(0.7, ge=0, le=1, description="IoU above which NMS removes a box, where a stream has no other.")
    max_staleness_ms: float = Field(
        500.0, gt=0, le=600_000, description="Frames older than this are dropped, where a stream has no other limit."
    )
    open_timeout_s: float = Field(5.0, gt=0, le=300, description="A camera must answer within it.")
    read_timeout_s: float = Field(5.0, gt=0, le=300, description="A camera silent for so long has stalled.")
    backoff_initial_s: float = Field(1.0, gt=0, le=3600, description="First pause before a lost camera is tried again.")
    backoff_max_s: float = Field(30.0, gt=0, le=3600, description="The pause doubles up to this.")
    max_streams: int = Field(256, ge=1, le=4096, description="Most streams that the server takes.")
    max_clients: int = Field(1000, ge=1, le=100_000, description="Most subscribers (WebSocket, SSE, MJPEG) at once.")
    websocket_queue_messages: int = Field(
        64, ge=1, le=100_000, description="Messages of each stream kept for a subscriber that reads slowly."
    )
    websocket_queue_bytes: int = Field(
        2 << 20, ge=1024, le=1 << 30, description="Bytes kept for a subscriber that reads slowly."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged to stderr.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")
    source_schemes: CommaSeparated = Field(
        list(SOURCE_SCHEMES), description="Addresses of streams may begin with these. In the environment: with commas."
    )
    allow_networks: Networks | None = Field(
        None, description="Cameras may be in these networks only (CIDR, with commas in the environment); null: in all."
    )
    deny_networks: Networks = Field(
        NO_SOURCES, description="No camera may be in these networks (CIDR), even if allow_networks names them."
    )
    allow_gstreamer: bool = Field(
        False,
        description="Take `gst: ...` pipelines as streams, from administrators. A pipeline can read and write any file "
        "that the server can, and reach any network.",
    )
    allowed_hosts: CommaSeparated | None = Field(
        None,
        description="Names (*.example.com: all below) under which the server answers, besides localhost; null: all, "
        "once there are tokens.",
    )
    allowed_origins: CommaSeparated = Field(
        default_factory=list,
        description="Pages of these origins (https://dashboard.example.com) may use the server, besides its own.",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate and those that it leads back to: the server speaks TLS only."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key, without a passphrase.")
    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="Most connections of clients at once, whatever they do."
    )
    max_connections_per_address: int = Field(
        512, ge=1, le=1_000_000, description="Of those, most from one address; loopback has no such limit."
    )

    model_folders: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="Bundles below these folders may be registered (POST /models). In the environment: by colons.",
    )
    events_days: float = Field(14.0, gt=0, le=3650, description="Events and their pictures are kept so many days.")
    events_max_mb: int = Field(
        1024, ge=1, le=1_000_000, description="Largest size of the data base of events; the oldest go first."
    )
    model_max_mb: int = Field(
        1024, ge=1, le=16_384, description="Largest model bundle that is registered, megabytes (2^20 bytes), unpacked."
    )
    swap_timeout_s: float = Field(
        180.0, gt=0, le=3600, description="A model that is being activated must be loaded, warm and tried within it."
    )
    swap_max_slowdown: float = Field(
        4.0, ge=1, le=1000, description="A model that takes so many times the active one's time is not activated."
    )
    mqtt_url: SecretStr | None = Field(
        None,
        description="Broker that is told events and states: mqtt://user:password@host:1883, or mqtts:// for TLS. "
        "Better given as YOLOV9_MQTT_URL.",
    )
    mqtt_prefix: str = Field("yolov9", pattern=r"^[^+#/\s]+(/[^+#/\s]+)*$", description="First levels of our topics.")
    mqtt_discovery: bool = Field(True, description="Tell Home Assistant of the streams, their zones and lines.")
    mqtt_discovery_prefix: str = Field(
        "homeassistant", pattern=r"^[^+#/\s]+(/[^+#/\s]+)*$", description="Home Assistant's own prefix of discovery."
    )
    mqtt_detections_per_s: float = Field(
        1.0, ge=0, le=30, description="Most detection messages of each stream, the newest frame's; 0: none."
    )
    webhooks: Annotated[list[Webhook], NoDecode, BeforeValidator(_json)] = Field(
        default_factory=list,
        max_length=32,
        description="Events are posted there: list of {name, url, secret, streams, classes}; JSON in the environment.",
    )
    webhook_give_up_h: float = Field(
        24.0, gt=0, le=8760, description="Events that are older are given up by webhooks once an attempt fails."
    )

    @field_validator("media", "model_folders", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        return [folder for folder in value.split(os.pathsep) if folder] if isinstance(value, str) else value

    @field_validator("source_schemes")
    @classmethod
    def _known_schemes(cls, value: list[str]) -> list[str]:
        if unknown := sorted(set(value) - set(SOURCE_SCHEMES)):
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(SOURCE_SCHEMES)}")
        return value

    @field_validator("allowed_hosts", "allowed_origins")
    @classmethod
    def _lower_case(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [name.lower() for name in value]

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
                raise ValueError(f"{origin!r} is not an origin: scheme and host, perhaps a port, and nothing behind")
        return value

    @field_validator("token")
    @classmethod
    def _usable_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or value.get_secret_value() == "":
            return None
        if not all(33 <= ord(character) < 127 for character in value.get_secret_value()):
            raise ValueError("must be of printable ASCII characters without blanks: it travels in a header")
        return value

    @field_validator("webhooks")
    @classmethod
    def _different_names(cls, value: list[Webhook]) -> list[Webhook]:
        if len({hook.name for hook in value}) < len(value):
            raise ValueError("two have the same name")
        return value

    @field_validator("mqtt_url")
    @classmethod
    def _usable_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or value.get_secret_value() == "":
            return None
        try:
            parts = urlsplit(split_credentials(value.get_secret_value())[0])
            usable = parts.scheme in ("mqtt", "mqtts") and bool(parts.hostname) and parts.port != 0
            usable = usable and not (parts.path.strip("/") or parts.query or parts.fragment)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("must be mqtt://host or mqtts://host, perhaps with user:password@ and a port")
        if importlib.util.find_spec("aiomqtt") is None:
            raise ValueError("MQTT needs a package: pip install 'yolov9-server[mqtt]'")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> ServerSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate, tls_key: TLS needs both")
        if self.backoff_initial_s > self.backoff_max_s:
            raise ValueError("backoff_initial_s: must not be above backoff_max_s")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then environment; `load_settings` puts the file's values below both. No .env file is looked for."""
        return init_settings, env_settings


def is_loopback(host: str) -> bool:
    """Whether an address to bind, or the host of a request, is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> ServerSettings:
    """Settings of `config` (YAML; may be None), the environment and `overrides`, the later the stronger.

    Raises SettingsError for unknown keys, values out of range, a file that cannot be read or is not a YAML mapping.
    """
    from_file = {} if config is None else _read(config)
    given = dict(overrides or {})
    for name in from_file:
        if name not in given and f"{ENVIRONMENT_PREFIX}{name}".upper() not in _environment():
            given[name] = from_file[name]
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_fault(e, from_file, config) for e in error.errors())) from None


def _environment() -> set[str]:
    return {name.upper() for name, value in os.environ.items() if value}


def _read(config: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{config}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{config}: is not UTF-8 text") from None
    except Exception as error:  # scalars that are not what their tag says fail in PyYAML with ValueError, KeyError, ...
        # The mark alone: the text of the error quotes the file, and a token may stand there.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise SettingsError(f"{config}{where}: is not YAML") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{config}: must be a mapping of names to values")
    return content


def _fault(error: Any, from_file: Mapping[str, Any], config: Path | None) -> str:
    """One fault as a sentence: which field, from where, what is wrong."""
    field = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is not a setting"
    where = f"{config}: " if field and field.partition(".")[0] in from_file else ""
    return f"{where}{field}: {message}" if field else message


def commented_yaml() -> str:
    """All settings with their descriptions and defaults, as `configs/server.yaml` has them."""
    lines = [
        "# Settings of the server: python -m server --config server.yaml",
        "# All are shown with their defaults. Environment variables (YOLOV9_PORT=9000) and options are stronger.",
    ]
    for name, field in ServerSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = yaml.safe_dump({name: to_jsonable_python(default)}, default_flow_style=False, sort_keys=False).strip()
        lines += ["", f"# {field.description}", *_choices(field.annotation), shown]
    return "\n".join(lines) + "\n"


def _choices(annotation: Any) -> list[str]:
    if getattr(annotation, "__origin__", None) is not Literal:
        return []
    return [f"# One of: {', '.join(annotation.__args__)}."]
