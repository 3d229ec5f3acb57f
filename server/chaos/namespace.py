"""Namespaces of Linux: a network with a packet filter in it and small file systems, without touching the machine's own.

A case that needs one runs in a process of its own below `unshare`; what it made goes with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TABLE = "yolov9_chaos"
_SMALL_MB = 8
_TIMEOUT_S = 10.0


def command(arguments: list[str]) -> list[str]:
    """The command below `unshare`. As an ordinary user in a user namespace, where the kernel allows that."""
    flags = ["--net", "--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net", "--mount"]
    return ["unshare", *flags, *arguments]


def missing(needs: str) -> str | None:
    """Why a namespace with a packet filter (`network`) or a small file system (`mount`) cannot be had here, or None."""
    tools = {"network": ("unshare", "ip", "nft"), "mount": ("unshare", "ip", "mount")}[needs]
    for tool in tools:
        if shutil.which(tool) is None:
            return f"the command {tool} is not installed"
    trial = {
        "network": f"ip link set lo up && nft add table inet {_TABLE} && "
        f"nft 'add chain inet {_TABLE} c {{ type filter hook input priority 0 ; }}' && "
        f"nft 'add rule inet {_TABLE} c udp dport 1 numgen random mod 100 < 5 drop'",
        "mount": "mount -t tmpfs -o size=1m none /mnt",
    }[needs]
    done = subprocess.run(command(["sh", "-c", trial]), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    return None if done.returncode == 0 else f"not permitted here: {done.stderr.strip().splitlines()[-1:] or ''}"


def set_up() -> None:
    """Loopback of a new network namespace."""
    _run("ip", "link", "set", "lo", "up")


@contextmanager
def dropping(rules: list[str]) -> Iterator[None]:
    """Packets to this network namespace that match one of the rules of nft are dropped."""
    _run("nft", "add", "table", "inet", _TABLE)
    try:
        _run("nft", f"add chain inet {_TABLE} input {{ type filter hook input priority 0 ; }}")
        for rule in rules:
            _run("nft", f"add rule inet {_TABLE} input {rule} drop")
        yield
    finally:
        _run("nft", "delete", "table", "inet", _TABLE)


def mount_small(folder: Path) -> None:
    _run("mount", "-t", "tmpfs", "-o", f"size={_SMALL_MB}m", "none", str(folder))


def remount(folder: Path, *, read_only: bool) -> None:
    """OSError where files are open for writing: then the kernel refuses `ro`."""
    _run("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(folder))


def unmount(folder: Path) -> None:
    """Lazily: the server may hold files in it for a moment longer."""
    _run("umount", "--lazy", str(folder))


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(arguments)}: {done.stderr.strip()}")
