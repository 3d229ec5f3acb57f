"""The page's files: all there, small, compressed, kept by browsers until they change, and nothing else of the disk."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from asgi_client import http_client
from fake_runtime import FakeRuntime

from server.delivery.app import create_app
from server.delivery.web import assets
from server.settings import ServerSettings


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(create_app(FakeRuntime(), ServerSettings(token="secret")), "http://server") as made:  # type: ignore[arg-type]
        yield made


async def test_page_and_files_need_no_token(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    addresses = re.findall(r'(?:src|href)="(/web/[^"]+)"', page.text)
    assert {"/web/js/main.js", "/web/css/base.css", "/web/icon.svg"} <= set(addresses)
    for address in addresses:
        assert (await client.get(address)).status_code == 200


async def test_compressed_and_plain_are_the_same(client: httpx.AsyncClient) -> None:
    for path, asset in assets().items():
        packed = await client.get(f"/web/{path}", headers={"Accept-Encoding": "gzip"})
        plain = await client.get(f"/web/{path}", headers={"Accept-Encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.content == plain.content == asset.content == gzip.decompress(asset.compressed)


async def test_a_browser_that_has_the_file_is_told_so(client: httpx.AsyncClient) -> None:
    first = await client.get("/web/js/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await client.get("/web/js/main.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get("/web/js/main.js", headers={"If-None-Match": '"old"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/js",
        "/web/none.js",
        "/web/../web.py",
        "/web/%2e%2e/cli.py",
        "/web//etc/passwd",
        "/web/js/main.js/",
    ],
)
async def test_nothing_else_is_there(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"Authorization": "Bearer secret"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_every_import_of_a_script_is_there() -> None:
    scripts = {path: asset.content.decode() for path, asset in assets().items() if path.endswith(".js")}
    for path, text in scripts.items():
        for name in re.findall(r'from "(\.[^"]+)"', text):
            folder = path.rpartition("/")[0]
            while name.startswith("../"):
                name, folder = name[3:], folder.rpartition("/")[0]
            assert f"{folder}/{name.removeprefix('./')}" in scripts, f"{path} imports {name}"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """The Content-Security-Policy would refuse it, and a camera network has no internet."""
    for path, asset in assets().items():
        if path.endswith((".html", ".css", ".svg")) or (path.endswith(".js") and "vendor" not in path):
            text = asset.content.decode()
            assert not re.search(r"<script>|<style|\sstyle=\"|\son[a-z]+=\"|javascript:|\beval\(|innerHTML", text), path
            assert not re.search(r"(?:src|href|import|url)\W{1,3}https?://", text), path
