"""`get`: downloads from a server on loopback that misbehaves in every way that servers do."""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import trained, write_r1

import yolov9
from yolov9 import packaged
from yolov9.checkpoints import download, releases
from yolov9.checkpoints.command import main
from yolov9.checkpoints.download import DownloadError, fetch
from yolov9.checkpoints.releases import RELEASES, ReleaseError, cached, find, get

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 8192
LIMIT = 1 << 24
pytestmark = pytest.mark.system


class Server(ThreadingHTTPServer):
    """Serves CONTENT; each request takes the next behaviour of `script`, the last one from then on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Callable[[Handler], None]] = [Handler.whole]
        self.requests: list[dict[str, str]] = []
        self.etag = '"one"'
        self.content = CONTENT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/yolov9-c.pt"

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append({k.lower(): v for k, v in self.headers.items()})
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: bytes, **headers: Any) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), "ETag": self.server.etag, **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def whole(self) -> None:
        """As servers should: ranges, if the version is still the same."""
        content, wanted = self.server.content, self.headers.get("Range", "")
        if not wanted or self.headers.get("If-Range") != self.server.etag:
            return self.send(200, content)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(content):
            return self.send(416, b"", Content_Range=f"bytes */{len(content)}")
        self.send(206, content[begin:], Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}")

    def half(self) -> None:
        """Hangs up half way through what was asked for."""
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        rest = self.server.content[begin:]
        headers: dict[str, Any] = {"Content_Length": len(rest)}
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
        self.send(206 if begin else 200, rest[: len(rest) // 2], **headers)
        self.close_connection = True

    def ignoring_ranges(self) -> None:
        self.send(200, self.server.content)

    def hang_up(self) -> None:
        self.close_connection = True


def answer(status: int, body: bytes = b"", **headers: Any) -> Callable[[Handler], None]:
    return lambda handler: handler.send(status, body, **headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class Clock:
    """Sleeps that take no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_a_file_comes_whole_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, progress=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_an_interrupted_transfer_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.script = [Handler.half, Handler.half, Handler.whole]
    clock = Clock()
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=clock)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    begins = [request.get("range") for request in server.requests]
    assert begins == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) * 3 // 4}-"]
    assert server.requests[1]["if-range"] == '"one"'
    assert clock.slept == [1, 1]


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.script = [Handler.half, Handler.hang_up]
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached"):
        fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert not (tmp_path / "w.pt").exists()
    assert (tmp_path / "w.pt.part").stat().st_size == len(CONTENT) // 2
    server.script, server.requests = [Handler.whole], []
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert server.requests[0]["range"] == f"bytes={len(CONTENT) // 2}-"
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.script = [Handler.half, Handler.hang_up]
    with pytest.raises(DownloadError):
        fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    server.script, server.etag, server.content = [Handler.whole], '"two"', b"PK\x03\x04 another file"
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert (tmp_path / "w.pt").read_bytes() == b"PK\x03\x04 another file"


def test_a_server_that_ignores_ranges_sends_it_anew(server: Server, tmp_path: Path) -> None:
    server.script = [Handler.half, Handler.ignoring_ranges]
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("content_range", ["bytes 5-9/10", "bytes 0-9/10", "nonsense", None])
def test_another_part_than_was_asked_for_is_not_used(server: Server, content_range: str | None, tmp_path: Path) -> None:
    server.script = [Handler.half, answer(206, b"wrong", Content_Range=content_range), Handler.whole]
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert "range" not in server.requests[2]


def test_bytes_of_unknown_origin_are_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pt.part").write_bytes(b"something else")
    (tmp_path / "w.pt.part.json").write_text("not JSON")
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT)
    assert "range" not in server.requests[0]
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_complete_or_too_long(server: Server, kept: int, tmp_path: Path) -> None:
    (tmp_path / "w.pt.part").write_bytes((CONTENT + b"12345")[:kept])
    (tmp_path / "w.pt.part.json").write_text(json.dumps({"url": server.url, "validator": '"one"'}))
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    assert len(server.requests) == (1 if kept == len(CONTENT) else 2)


def test_what_is_not_there_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.script = [answer(404)]
    with pytest.raises(DownloadError, match="the server answered HTTP 404 Not Found"):
        fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again_and_not_for_ever(server: Server, tmp_path: Path) -> None:
    clock = Clock()
    server.script = [answer(503), answer(429), Handler.whole]
    fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=clock)
    assert clock.slept == [1, 3]
    server.script, server.requests = [answer(503)], []
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(server.url, tmp_path / "x.pt", limit=LIMIT, sleep=clock)
    assert len(server.requests) == 4


def test_a_transfer_that_always_ends_early_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script = [answer(200, b"PK\x03\x04", Content_Length=len(CONTENT), ETag=None)]
    with pytest.raises(DownloadError, match=r"the connection ended after 4 of 2,097,156 bytes"):
        fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
    assert not (tmp_path / "w.pt").exists()


def test_a_file_that_is_too_large_is_refused_before_and_while_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server has 2,097,156 bytes of it, more than the 1,000"):
        fetch(server.url, tmp_path / "w.pt", limit=1000)
    server.script = [answer(200, CONTENT, Content_Length=None, Connection="close")]
    with pytest.raises(DownloadError, match="the server sends more than 1,000 bytes"):
        fetch(server.url, tmp_path / "w.pt", limit=1000)
    assert list(tmp_path.iterdir()) == []


def test_redirects_lead_to_https_alone(server: Server, tmp_path: Path) -> None:
    for location in ("http://127.0.0.1:1/x?token=secret", "file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.script = [answer(302, Location=location)]
        with pytest.raises(DownloadError, match="not https") as caught:
            fetch(server.url, tmp_path / "w.pt", limit=LIMIT, sleep=Clock())
        assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_https_is_followed_with_the_range() -> None:
    request = urllib.request.Request("https://one.example/x", headers={"Range": "bytes=5-"})
    followed = download._HttpsOnly().redirect_request(request, None, 302, "Found", {}, "https://two.example/y")
    assert (followed.full_url, followed.get_header("Range")) == ("https://two.example/y", "bytes=5-")


@pytest.mark.parametrize("url", ["http://example.com/x.pt", "file:///etc/passwd", "ftp://example.com/x", "x.pt"])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="is not https"):
        fetch(url, tmp_path / "w.pt", limit=LIMIT)


def test_two_processes_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "w.pt.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is fetching it"):
            fetch(server.url, tmp_path / "w.pt", limit=LIMIT)
    assert server.requests == []


# Releases


@pytest.fixture
def release(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> releases.Release:
    """yolov9-c, served here, and a cache of its own."""
    made = replace(find("yolov9-c"), url=server.url)
    monkeypatch.setattr(releases, "RELEASES", {**RELEASES, "yolov9-c": made})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_the_published_files() -> None:
    assert len(RELEASES) == 17
    for name, one in RELEASES.items():
        assert one.url.startswith("https://github.com/")
        assert one.url.endswith(f"/{name}.pt")
        assert one.licence in ("GPL-3.0", "MIT (as its publisher states)")
        assert one.sha256 is None or len(bytes.fromhex(one.sha256)) == 32
    assert find("gelan-c.pt") is RELEASES["gelan-c"]
    with pytest.raises(ReleaseError, match="nearest: v9-c"):
        find("v9c")


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert releases.cache_folder() == Path("/x/yolov9")
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert releases.cache_folder() == Path.home() / ".cache" / "yolov9"


def test_get_fetches_records_and_verifies(
    release: releases.Release, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["get", "yolov9-c"]) == 0
    folder, digest = tmp_path / "cache" / "yolov9", hashlib.sha256(CONTENT).hexdigest()
    said = capsys.readouterr()
    assert f"{folder / 'yolov9-c.pt'}: 2,097,156 bytes, sha256 {digest}, licence GPL-3.0" in said.out
    assert said.out.endswith("use it as: --weights yolov9-c\n")
    assert "yolov9-c.pt: 2.1 of 2.1 MB (100 %)" in said.err
    assert json.loads((folder / "yolov9-c.pt.json").read_text()) == {
        "url": server.url,
        "licence": "GPL-3.0",
        "bytes": len(CONTENT),
        "sha256": digest,
    }
    assert main(["get", "yolov9-c"]) == 0
    assert len(server.requests) == 1
    assert cached("yolov9-c") == cached("yolov9-c.pt") == folder / "yolov9-c.pt"
    (folder / "yolov9-c.pt").write_bytes(CONTENT[:-1] + b"x")
    assert main(["get", "yolov9-c"]) == 1
    assert f"not {digest}: it was changed or is damaged" in capsys.readouterr().err
    with pytest.raises(packaged.ModelNotFound, match="it was changed or is damaged"):
        packaged.resolve("yolov9-c")


def test_a_published_sum_is_compared(release: releases.Release, tmp_path: Path) -> None:
    wrong = replace(release, sha256="0" * 64)
    with pytest.raises(ReleaseError, match="what came has the sha256"):
        get(wrong, tmp_path / "a", print)
    assert list((tmp_path / "a").iterdir()) == []
    right = replace(release, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert get(right, tmp_path / "a", print).read_bytes() == CONTENT
    (tmp_path / "a" / "yolov9-c.pt").write_bytes(b"PK\x03\x04 else")
    with pytest.raises(ReleaseError, match="it was changed or is damaged"):
        get(right, tmp_path / "a", print)


def test_a_page_instead_of_a_file_is_refused(release: releases.Release, server: Server, tmp_path: Path) -> None:
    """What a login page of a network gives for every address."""
    server.content = b"<!DOCTYPE html><title>Welcome</title>"
    with pytest.raises(ReleaseError, match="what came is not a torch file: it begins with b'<!DOCTYPE html>"):
        get(release, tmp_path / "a", print)
    assert list((tmp_path / "a").iterdir()) == []


def test_offline_it_says_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(download.time, "sleep", lambda _: pytest.fail("offline there is nothing to wait for"))
    assert main(["get", "v9-s", "--cache", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "github.com cannot be reached" in said
    assert "https://github.com/MultimediaTechLab/YOLO/releases/download/v1.0-alpha/v9-s.pt" in said
    assert f"put it at {tmp_path / 'v9-s.pt'}" in said
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_found_by_every_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(packaged.ModelNotFound, match=r"python -m yolov9\.weights get gelan-s"):
        yolov9.load("gelan-s")
    (tmp_path / "yolov9").mkdir()
    write_r1(tmp_path / "yolov9" / "gelan-s.pt", trained("gelan-s", 3))
    for name in ("gelan-s", "gelan-s.pt"):
        assert yolov9.load(name).name == "gelan-s"
    assert main(["get", "gelan-s"]) == 0
    assert "was put there by hand; its sha256 is recorded from now on" in capsys.readouterr().out
    assert main(["inspect", "gelan-s"]) == 0
    assert "architecture  gelan-s" in capsys.readouterr().out
    (tmp_path / "yolov9" / "gelan-s.pt.json").write_text("[]")
    assert main(["get", "gelan-s"]) == 1
    assert "not a record of a download" in capsys.readouterr().err
