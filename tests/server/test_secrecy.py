"""Secrets in arguments and in the environment: who else may see them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.secrecy import child_environment, masked_arguments

URL = "rtsp://admin:hunter2@10.0.0.7:554/live?token=abcdef"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", "t0p-s3cret", "--stream", URL],
        ["--token=t0p-s3cret", f"--stream={URL}"],
        ["--tok", "t0p-s3cret", "--str", URL, "--str", URL],
    ],
)
def test_secrets_in_arguments_are_masked_and_the_rest_stays(arguments: list[str]) -> None:
    given = ["python", "-m", "server", "--port", "0", *arguments, "--data", "x"]
    masked = masked_arguments(given, ["t0p-s3cret"], [URL])
    text = " ".join(masked)
    assert not {"t0p-s3cret", "hunter2", "admin", "abcdef"} & set(text.replace("=", " ").split())
    for secret in ("t0p-s3cret", "hunter2", "admin:", "abcdef"):
        assert secret not in text
    assert "10.0.0.7:554/live" in text
    assert masked[:5] == given[:5]
    assert masked[-2:] == ["--data", "x"]


def test_arguments_without_secrets_stay() -> None:
    given = ["python", "-m", "server", "--stream", "rtsp://10.0.0.7/live"]
    assert masked_arguments(given, [], ["rtsp://10.0.0.7/live"]) == given


def test_other_processes_inherit_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"YOLOV9_TOKEN", "yolov9_token", "YOLOV9_MQTT_PASSWORD", "YOLOV9_WEBHOOK_SECRET"}
    secret |= {"YOLOV9_WEBHOOKS", "YOLOV9_MQTT_URL"}
    plain = {"YOLOV9_PORT", "_YOLOV9_LOGS", "HOME_TOKENS"}
    for name in secret | plain:
        monkeypatch.setenv(name, "x")
    names = set(child_environment())
    assert names & secret == set()
    assert plain <= names


def test_what_others_see_of_a_process_changes() -> None:
    script = (
        "import sys; from pathlib import Path; from server.secrecy import hide_arguments\n"
        f"hide_arguments(['t0p-s3cret', None], [{URL!r}])\n"
        "print(Path('/proc/self/cmdline').read_bytes())"
    )
    command = [sys.executable, "-c", script, "--token", "t0p-s3cret", "--stream", URL]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "--token" in seen
    assert "t0p-s3cret" not in seen.replace(script, "")
    assert Path(sys.executable).name in seen
