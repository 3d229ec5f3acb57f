"""What may be opened: network addresses of known schemes, and files below a media folder. Nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.ingest.network import Networks
from server.media import BadAddress, Rules, is_file, resolve
from server.settings import load_settings
from server.streams import StreamDefinition


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


@pytest.mark.parametrize(
    "url",
    ["rtsp://10.0.0.1/s", "rtsps://cam:322/x?y=1", "http://h/v.mp4", "https://h/v.m3u8", "rtmp://h/live/x",
     "udp://239.1.1.1:1234", "udp://:1234", "rtp://[ff02::1]:5004", "srt://h:9000?latency=120", "srt://h:9000?mode=caller",
     "srt://h:9000?streamid=cam&passphrase=0123456789"],
)  # fmt: skip
def test_network_addresses_pass_as_they_are(url: str) -> None:
    assert resolve(url, Rules()) == url
    assert not is_file(url)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "file:a.mp4", "concat:a|b", "subfile,,start,0:a", "ftp://h/x", "rtsp://", "rtsp:///path",
     "http://h:99999999/", "rtsp://ho st/", "pipe:0", "crypto:file", "data:text/plain,x", "rtsp://[::1/x", "tcp://h:1",
     "udp://239.1.1.1", "udp://camera:1234", "rtp://h/x", "srt://h", "srt://:9000", "srt://h:1?pbkeylen=3",
     "srt://h:1?passphrase=short", "srt://h:1?sndbuf=1", "srt://h:1?mode=listener", "rtmp:///live/x",
     "v4l2:/etc/passwd", "/dev/mem", "/dev/video0/../mem", "v4l2:/dev/v4l/by-id/../../mem", "v4l2:/dev/video0?size=big",
     "v4l2:/dev/video0?timeout=1", "gst: videotestsrc ! appsink"],
)  # fmt: skip
def test_anything_else_is_refused(url: str, media: Path) -> None:
    with pytest.raises(BadAddress):
        resolve(url, Rules([media]))


def test_a_device_is_written_in_one_way() -> None:
    assert resolve("/dev/video0", Rules()) == "v4l2:/dev/video0"
    assert resolve("v4l2:/dev/video2?size=1280x720&fps=30&format=mjpeg", Rules()).endswith("fps=30&format=mjpeg")
    assert resolve("/dev/v4l/by-id/usb-ACME_Cam-video-index0", Rules()).startswith("v4l2:/dev/v4l/by-id/usb-ACME")
    assert not is_file("v4l2:/dev/video0")


def test_pipelines_are_for_those_who_allow_them() -> None:
    rules = Rules(pipelines=True)
    assert resolve("gst:videotestsrc ! appsink sync=false ", rules) == "gst: videotestsrc ! appsink sync=false"
    for url in ("gst: videotestsrc ! fakesink", "gst:", "gst: appsink ! fakesink"):
        with pytest.raises(BadAddress, match="appsink"):
            resolve(url, rules)


def test_only_the_schemes_of_the_settings_are_served() -> None:
    rules = Rules(schemes=["rtsps", "https"])
    assert resolve("rtsps://h/x", rules)
    for url in ("rtsp://h/x", "http://h/x", "udp://:1234", "/dev/video0"):
        with pytest.raises(BadAddress, match="served"):
            resolve(url, rules)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "rtsp://10.0.0.1/x", "http://[::ffff:10.0.0.1]/x", "srt://10.1.1.1:9000"]
)
def test_an_address_in_numbers_is_judged_at_once(url: str) -> None:
    with pytest.raises(BadAddress, match="network"):
        resolve(url, Rules(networks=Networks.parse(None, ["169.254.0.0/16", "10.0.0.0/8"])))


def test_rules_are_those_of_the_settings(tmp_path: Path) -> None:
    given = {"media": [tmp_path], "allow_networks": "10.0.0.0/8", "allow_gstreamer": True, "source_schemes": "rtsp"}
    rules = Rules.of(load_settings(None, given))
    assert (rules.media, rules.schemes, rules.pipelines) == ([tmp_path], ["rtsp"], True)
    assert rules.networks.permits("10.0.0.1")
    assert not rules.networks.permits("192.0.2.1")


def test_a_group_to_listen_to_is_no_user_name() -> None:
    definition = StreamDefinition(url="udp://@239.1.1.1:1234")
    assert (definition.url, definition.username) == ("udp://239.1.1.1:1234", None)
    assert resolve(definition.url, Rules()) == definition.url


def test_files_are_found_below_a_media_folder_only(media: Path) -> None:
    assert resolve("a.mp4", Rules([media])) == str(media / "a.mp4")
    assert resolve("sub/b.mkv", Rules([media])) == str(media / "sub" / "b.mkv")
    assert resolve(str(media / "a.mp4"), Rules([media])) == str(media / "a.mp4")
    assert resolve("inside.mp4", Rules([media])) == str(media / "a.mp4")
    assert is_file(resolve("a.mp4", Rules([media])))


@pytest.mark.parametrize("url", ["../secret.mp4", "link.mp4", "missing.mp4", "sub", "/etc/passwd", ""])
def test_files_elsewhere_links_to_elsewhere_and_folders_are_refused(url: str, media: Path) -> None:
    with pytest.raises(BadAddress):
        resolve(url, Rules([media]))


def test_without_a_media_folder_no_file_is_served(media: Path) -> None:
    with pytest.raises(BadAddress, match="--media"):
        resolve(str(media / "a.mp4"), Rules())
