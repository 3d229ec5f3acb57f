"""Settings: where they come from, what is refused, and that the shipped file says the truth."""

from __future__ import annotations

import importlib.resources
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest
import yaml

from server.settings import ServerSettings, SettingsError, commented_yaml, is_loopback, load_settings

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("YOLOV9_"):
            monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "server.yaml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.token, settings.media) == ("127.0.0.1", 8080, None, [])
    assert settings.data == Path("yolov9-data")


def test_the_shipped_file_is_the_defaults_with_their_descriptions() -> None:
    shipped = importlib.resources.files("configs") / "server.yaml"
    assert shipped.read_text(encoding="utf-8") == commented_yaml()
    with importlib.resources.as_file(shipped) as path:
        assert load_settings(path) == ServerSettings()
    assert set(yaml.safe_load(commented_yaml())) == set(ServerSettings.model_fields)
    for name, field in ServerSettings.model_fields.items():
        assert field.description, name
        assert field.description in commented_yaml()


def test_options_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "port: 1\nmax_streams: 2\niou: 0.1\n")
    monkeypatch.setenv("YOLOV9_MAX_STREAMS", "3")
    monkeypatch.setenv("yolov9_iou", "0.2")
    settings = load_settings(path, {"iou": 0.3})
    assert (settings.port, settings.max_streams, settings.iou) == (1, 3, 0.3)


def test_folders_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV9_MEDIA", "/a:/b c")
    assert load_settings().media == [Path("/a"), Path("/b c")]


def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV9_ALLOW_NETWORKS", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("YOLOV9_SOURCE_SCHEMES", "rtsp,rtsps")
    settings = load_settings()
    assert settings.allow_networks == [IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8")]
    assert settings.source_schemes == ["rtsp", "rtsps"]


def test_metadata_services_are_no_cameras() -> None:
    denied = load_settings().deny_networks
    for service in ("169.254.169.254", "fd00:ec2::254", "fe80::1"):
        assert any(ip_address(service) in network for network in denied), service


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YOLOV9_TOKEN", "")
    assert load_settings().token is None
    token = load_settings(write(tmp_path, f"token: {SECRET}")).token
    assert token is not None
    assert token.get_secret_value() == SECRET


@pytest.mark.parametrize("text", ["prot: 80", "port: 80\nextra: {a: 1}"])
def test_unknown_names_are_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError, match=rf"^{path}: (prot|extra): is not a setting$"):
        load_settings(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: high", "port: "),
        ("port: 70000", "port: .*65535"),
        ("confidence: 1.5", "confidence: "),
        ("engine: magic", "engine: .*openvino"),
        ("- a", "must be a mapping"),
        ("1: a", "must be a mapping"),
        ("a: [", "line 1: is not YAML"),
        (f"token: {SECRET}\n\tx: 1", "is not YAML"),
        ("backoff_initial_s: 40", "backoff_initial_s: must not be above backoff_max_s"),
        (f"token: '{SECRET} x'", "token: must be of printable ASCII"),
        (f"token: [{SECRET}]", "token: "),
        ("allow_networks: [10.0.0.1/8]", "allow_networks: 10.0.0.1/8 has host bits set"),
        ("deny_networks: [cameras]", "deny_networks: 'cameras' does not appear to be an IPv4 or IPv6 network"),
        ("deny_networks: [7.5]", "deny_networks"),
        ("source_schemes: [rtsp, gopher]", "source_schemes: gopher: not among rtsp"),
        ("allowed_origins: [example.com]", "allowed_origins: 'example.com' is not an origin"),
        ("allowed_origins: ['https://example.com/']", "allowed_origins: .* nothing behind"),
        ("tls_key: x.pem", "tls_certificate, tls_key: TLS needs both"),
    ],
)
def test_what_is_wrong_is_said_without_secrets(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(write(tmp_path, text))
    assert SECRET not in str(caught.value)


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"port: .*; iou: "):
        load_settings(None, {"port": -1, "iou": 2})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings(tmp_path / "latin.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "# nothing\n")) == ServerSettings()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    assert load_settings(None, {"host": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "camera.example", "127.0.0.1.example"])
def test_other_addresses_are_no_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_the_token_is_not_shown() -> None:
    settings = load_settings(None, {"token": SECRET})
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings.model_dump())
