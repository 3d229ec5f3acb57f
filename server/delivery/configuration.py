"""The server's settings: what they are, and reading them anew."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from typing_extensions import TypedDict

from server.delivery.context import InContext
from server.delivery.documented import documented
from server.reload import LIVE, SettingsRefused, shown_settings

router = APIRouter(tags=["operation"])


class Settings(TypedDict):
    settings: dict[str, Any]
    """Secrets are masked."""
    live: list[str]
    """Names of those that a reload takes over; the others wait for the next start."""


class SettingsReloaded(TypedDict):
    changed: dict[str, Any]
    """Taken over, with the new values."""
    restart: list[str]
    """Names of those that differ now but wait for the next start."""


@router.get("/settings")
async def settings(context: InContext) -> Settings:
    """The settings that the server runs with."""
    return {"settings": shown_settings(context.settings), "live": sorted(LIVE)}


@router.post("/settings/reload", responses=documented(SettingsRefused))
async def reload(context: InContext) -> SettingsReloaded:
    """Read file and environment again, as SIGHUP does. Settings that cannot be used are refused as a whole."""
    done = await context.reloader.reload()
    return {"changed": done.changed, "restart": done.restart}
