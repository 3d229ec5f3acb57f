"""What an inference worker is told when it starts. The first message on its socket, before any `protocol.Request`."""

from __future__ import annotations

from typing import Literal

import msgspec


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`None` leaves a choice to the engine."""

    bundle: str
    """Folder of the model bundle."""
    engine: str = "auto"
    """A name of `yolov9.engines`, or auto: the fastest that works here."""
    precision: str = "auto"
    """auto | fp32 | fp16 | bf16 | int8"""
    threads: int | None = None
    """CPU threads of the engine."""
    max_batch: int | None = None
    """Largest batch to report; the engine may prefer smaller ones."""
    cache_dir: str | None = None
    """Where compiled engines are kept."""
    mode: Literal["auto", "latency", "throughput"] = "auto"
    """auto: latency, and throughput as long as the load asks for it and it pays (`modes`)."""
    nice: int = 0
    """Added to the process's niceness."""
    engine_factory: str | None = None
    """`module:function`, called with this config, -> `loading.Loaded`, instead of loading the bundle: fake engines of
    tests. Never taken from a user's settings."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(WorkerConfig)


def encode_config(config: WorkerConfig) -> bytes:
    return _encoder.encode(config)


def decode_config(data: bytes) -> WorkerConfig:
    return _decoder.decode(data)
