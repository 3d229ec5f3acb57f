"""What may be opened: network addresses of known schemes, and files below a media folder. Nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.media import BadAddress, is_file, resolve


@pytest.fixture
def media(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "a.mp4").write_bytes(b"x")
    (root / "sub" / "b.mkv").write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    return root


@pytest.mark.parametrize("url", ["rtsp://10.0.0.1/s", "rtsps://cam:322/x?y=1", "http://h/v.mp4", "https://h/v.m3u8"])
def test_network_addresses_pass_as_they_are(url: str) -> None:
    assert resolve(url, []) == url
    assert not is_file(url)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "file:a.mp4", "concat:a|b", "subfile,,start,0:a", "ftp://h/x", "rtsp://", "rtsp:///path",
     "http://h:99999999/", "rtsp://ho st/", "pipe:0", "crypto:file", "data:text/plain,x", "rtsp://[::1/x"],
)  # fmt: skip
def test_anything_else_is_refused(url: str, media: Path) -> None:
    with pytest.raises(BadAddress):
        resolve(url, [media])


def test_files_are_found_below_a_media_folder_only(media: Path) -> None:
    assert resolve("a.mp4", [media]) == str(media / "a.mp4")
    assert resolve("sub/b.mkv", [media]) == str(media / "sub" / "b.mkv")
    assert resolve(str(media / "a.mp4"), [media]) == str(media / "a.mp4")
    assert resolve("inside.mp4", [media]) == str(media / "a.mp4")
    assert is_file(resolve("a.mp4", [media]))


@pytest.mark.parametrize("url", ["../secret.mp4", "link.mp4", "missing.mp4", "sub", "/etc/passwd", ""])
def test_files_elsewhere_links_to_elsewhere_and_folders_are_refused(url: str, media: Path) -> None:
    with pytest.raises(BadAddress):
        resolve(url, [media])


def test_without_a_media_folder_no_file_is_served(media: Path) -> None:
    with pytest.raises(BadAddress, match="--media"):
        resolve(str(media / "a.mp4"), [])
