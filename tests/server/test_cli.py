"""The command line: what it refuses and how it says so."""

from __future__ import annotations

import pytest

from server.cli import _stream_id, parser, run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere"], "neither a folder nor a packaged model"),
        (["--host", "0.0.0.0", "--model", "x"], "a token is needed"),
        (["--port", "70000"], "port"),
        (["--config", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (["--engine", "abacus"], "engine"),
    ],
)
def test_bad_usage_ends_with_one_sentence_that_names_the_fault(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert "Traceback" not in captured


def test_a_stream_named_on_the_command_line_keeps_its_id_and_shows_no_credentials() -> None:
    stream = _stream_id("rtsp://user:secret@10.0.0.7:554/live/1")
    assert stream == _stream_id("rtsp://other:word@10.0.0.7:554/live/1")
    assert stream.startswith("10-0-0-7-554-live-1-")
    assert "secret" not in stream
    assert stream != _stream_id("rtsp://10.0.0.7:554/live/2")


def test_every_option_has_a_help_text() -> None:
    assert [a.dest for a in parser()._actions if not a.help] == []
