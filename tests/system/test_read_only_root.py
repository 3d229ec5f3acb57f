"""As in a container with a read-only root: nothing is written outside of the data folder, /tmp included."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle

pytestmark = pytest.mark.system

READ_ONLY = r"""
data=$1; shift
mount --bind "$data" "$data" || exit 99
awk '{ print $5, $6 }' /proc/self/mountinfo | while read -r point options; do
  case $point in "$data"|/proc*|/sys*|/dev*) continue ;; esac
  mount -o "remount,bind,$(sed 's/^rw/ro/' <<< "$options")" "$point" || exit 99
done
[ $? = 0 ] && ! touch /tmp/written 2> /dev/null || exit 99
exec "$@"
"""
"""All mounts but the data folder are made read-only for one command, in namespaces of its own: no privileges needed."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def read_only(data: Path) -> list[str]:
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", READ_ONLY, "bash", str(data)]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if tried.returncode != 0:
        pytest.skip("needs user namespaces")
    return command


@pytest.fixture
def server(read_only: list[str], data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    model = tiny_bundle(data.parent / "tiny").path
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/nonexistent")
    with ServerProcess(model, data, prefix=read_only) as running:
        yield running


def test_a_server_with_a_read_only_root(server: ServerProcess, data: Path) -> None:
    wait_for(lambda: server.http.get("/readyz").status_code == 200, 60, "the model")
    server.add(id="door", url="rtsp://127.0.0.1:9/none")
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(picture, "PNG")
    answer = server.http.post("/detect", content=picture.getvalue())
    assert answer.status_code == 200
    assert [d["class"] for d in answer.json()["detections"]]
    server.terminate()
    assert server.process.returncode == 0
    assert not [line for line in server.log if "Read-only" in line or "Traceback" in line]
    assert (data / "streams.sqlite").stat().st_uid == os.getuid()
