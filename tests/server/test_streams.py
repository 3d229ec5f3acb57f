"""Stream definitions: credentials out of URLs, masks, patches."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from server.addresses import MASK, masked_url, split_credentials
from server.analytics.shapes import Zone
from server.streams import (
    StreamDefinition,
    StreamPatch,
    reveal,
)

SECRET = "s3cr3t"
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
PASTED = st.text("ab1@:/?#%&= ", max_size=12).map(lambda s: s.replace("%", "p"))
"""Passwords as people paste them, with all that has a meaning in URLs (but for percent signs: those are decoded)."""
HOSTS = st.sampled_from(["192.0.2.1", "192.0.2.1:554", "camera:8554", "[2001:db8::1]", "[2001:db8::1]:554"])
PATHS = st.sampled_from(["", "/", "/live/ch0", "/axis-media/media.amp?camera=1", "/user=x_channel=1.sdp", "?a=b"])


@given(WORDS, WORDS, HOSTS, PATHS)
def test_percent_encoded_credentials_come_out_exactly(user: str, password: str, host: str, path: str) -> None:
    url = f"rtsp://{quote(user, safe='')}:{quote(password, safe='')}@{host}{path}"
    assert split_credentials(url) == (f"rtsp://{host}{path}", user, password)


@settings(max_examples=1000)
@given(st.text("abc1", min_size=1), PASTED, HOSTS, PATHS)
def test_pasted_credentials_come_out_where_the_host_is_plain_to_see(
    user: str, password: str, host: str, path: str
) -> None:
    """`@:/?#` in a password, unescaped. Not if what stands before its first slash is an address by itself, as in
    `rtsp://user:554/x@...` and `rtsp://user:a@b:554/x@...`: those are well-formed URLs."""
    head = re.split("[/?#]", password)[0]
    assume(not re.fullmatch(r"\d{1,5}", head) or head == password)
    assume(not re.search(r"@[^@:\s]+:\d{1,5}$", head) or head == password)
    url = f"rtsp://{user}:{password}@{host}{path}"
    assert split_credentials(url) == (f"rtsp://{host}{path}", user, password)


@pytest.mark.parametrize(
    ("url", "bare", "user", "password"),
    [
        ("rtsp://admin:p@ss:w/rd@127.0.0.1:8554/cam", "rtsp://127.0.0.1:8554/cam", "admin", "p@ss:w/rd"),
        ("rtsp://admin:@:/@192.0.2.1/cam", "rtsp://192.0.2.1/cam", "admin", "@:/"),
        ("rtsp://admin:a/b@camera/x", "rtsp://camera/x", "admin", "a/b"),
        ("rtsp://admin:a?b#c@192.0.2.1/x", "rtsp://192.0.2.1/x", "admin", "a?b#c"),
        ("rtsp://admin@192.0.2.1/x", "rtsp://192.0.2.1/x", "admin", None),
        ("rtsp://admin:@192.0.2.1/x", "rtsp://192.0.2.1/x", "admin", ""),
        ("rtsp://:pw@192.0.2.1/x", "rtsp://192.0.2.1/x", "", "pw"),
        ("rtsp://a%40b:c%3Ad@h.example/x", "rtsp://h.example/x", "a@b", "c:d"),
        # An `@` in the path of a well-formed URL stays there.
        ("rtsp://192.0.2.1:554/live@2", "rtsp://192.0.2.1:554/live@2", None, None),
        ("rtsp://camera/live@2", "rtsp://camera/live@2", None, None),
        ("rtsp://u:p@192.0.2.1/live@2", "rtsp://192.0.2.1/live@2", "u", "p"),
        ("rtsp://u:p@cam.example/?mail=a@b.example", "rtsp://cam.example/?mail=a@b.example", "u", "p"),
        ("HTTP://u:p@h:1/", "HTTP://h:1/", "u", "p"),
        ("clips/u:p@h.mp4", "clips/u:p@h.mp4", None, None),
        ("rtsp://", "rtsp://", None, None),
        ("", "", None, None),
    ],
)
def test_split(url: str, bare: str, user: str | None, password: str | None) -> None:
    assert split_credentials(url) == (bare, user, password)


@given(st.text(max_size=60))
def test_any_text_is_split_and_masked_without_an_error(text: str) -> None:
    for url in (text, f"rtsp://{text}", f"rtsp://{text}@{text}/{text}"):
        bare, user, _ = split_credentials(url)
        assert split_credentials(bare)[0] == bare or user is not None or "@" in bare
        masked_url(url)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (f"rtsp://u:{SECRET}@h.example/x", f"rtsp://{MASK}@h.example/x"),
        (f"http://h.example/v?user=a&password={SECRET}&ch=1", f"http://h.example/v?user=a&password={MASK}&ch=1"),
        (f"http://h.example/v?ch=1;Auth_Token={SECRET};x=2", f"http://h.example/v?ch=1;Auth_Token={MASK};x=2"),
        (f"http://h.example/v?apikey={SECRET}#{SECRET}", f"http://h.example/v?apikey={MASK}#{MASK}"),
        (
            f"rtsp://h.example:554/user=admin_password={SECRET}_channel=1_stream=0.sdp",
            f"rtsp://h.example:554/user=admin_password={MASK}_channel=1_stream=0.sdp",
        ),
        (
            f"rtsp://h.example:554/user=admin&password={SECRET}&channel=1",
            f"rtsp://h.example:554/user=admin&password={MASK}&channel=1",
        ),
        ("rtsp://[broken", f"rtsp://{MASK}"),
        ("clips/people.mp4", "clips/people.mp4"),
        ("rtsp://h.example/live@2?ch=1", "rtsp://h.example/live@2?ch=1"),
        (
            f"srt://h.example:9000?passphrase={SECRET}&latency=120",
            f"srt://h.example:9000?passphrase={MASK}&latency=120",
        ),
        (
            f"gst: rtspsrc location=rtsp://u:{SECRET}@h.example/x user-pw={SECRET} latency=0 ! decodebin ! appsink",
            f"gst: rtspsrc location=rtsp://{MASK}@h.example/x user-pw={MASK} latency=0 ! decodebin ! appsink",
        ),
        (f'gst: srtsrc passphrase="{SECRET} {SECRET}" ! appsink', f"gst: srtsrc passphrase={MASK} ! appsink"),
        (
            "gst: videotestsrc ! x264enc key-int-max=25 ! appsink",
            "gst: videotestsrc ! x264enc key-int-max=25 ! appsink",
        ),
    ],
)
def test_mask(url: str, masked: str) -> None:
    assert masked_url(url) == masked
    assert masked_url(masked) in (masked, url)


def test_where_a_password_ends_must_be_clear() -> None:
    with pytest.raises(ValidationError, match="where the password ends") as caught:
        StreamDefinition(url=f"rtsp://user:p@{SECRET}/word@host/path")
    assert SECRET not in str(caught.value)
    assert StreamDefinition(url="rtsp://user:p@ss%2Fword@host/path").password == SecretStr("p@ss/word")


def test_credentials_given_beside_the_url_win() -> None:
    definition = StreamDefinition(url="rtsp://u:p@192.0.2.1/x", username="v", password=SecretStr("q"))
    assert (definition.url, definition.username, definition.password) == ("rtsp://192.0.2.1/x", "v", SecretStr("q"))


def test_nothing_shows_a_secret() -> None:
    definition = StreamDefinition(url=f"rtsp://us3r:{SECRET}@h.example/x?token={SECRET}")
    patch = StreamPatch(url=f"rtsp://us3r:{SECRET}@h.example/x", password=SecretStr(SECRET))
    for shown in (repr(definition), str(definition), repr(patch), str(patch), f"{[definition]}"):
        assert SECRET not in shown
        assert "us3r" not in shown
    with pytest.raises(ValidationError) as caught:
        StreamDefinition(url="x", password=SecretStr(SECRET * 1000), username=SECRET * 1000, loop=SECRET)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_passwords_keep_their_blanks() -> None:
    definition = StreamDefinition.model_validate({"url": " rtsp://h ", "password": "  p  ", "username": " u "})
    assert definition.url == "rtsp://h"
    assert definition.username == " u "
    assert reveal(definition)["password"] == "  p  "


def _zone(share: float, classes: list[str] | None) -> list[Zone]:
    return [Zone(name="yard", points=[[0.0, 1.0], [1.0, share / 2], [0.5, 0.0]], classes=classes)]


DEFINITIONS = st.builds(
    StreamDefinition,
    url=st.sampled_from(["rtsp://h.example/x", "clips/a.mp4"]),
    username=st.none() | WORDS,
    password=st.none() | WORDS.map(SecretStr),
    max_fps=st.none() | st.floats(0.1, 1000),
    confidence=st.none() | st.floats(0, 1),
    classes=st.none() | st.lists(WORDS, max_size=3),
    class_confidence=st.none() | st.dictionaries(WORDS, st.floats(0, 1), max_size=3),
    loop=st.none() | st.booleans(),
    zones=st.none() | st.builds(_zone, st.floats(0, 1), st.none() | st.lists(WORDS, min_size=1, max_size=2)),
)


@given(DEFINITIONS)
def test_stored_and_loaded_is_the_same(definition: StreamDefinition) -> None:
    assert StreamDefinition.model_validate(json.loads(json.dumps(reveal(definition)))) == definition


@given(DEFINITIONS)
def test_an_empty_patch_changes_nothing(definition: StreamDefinition) -> None:
    assert definition.patched(StreamPatch()) == definition


def test_patches() -> None:
    before = StreamDefinition(id="a", url="rtsp://u:p@h.example/x", confidence=0.5, classes=["person"], loop=True)
    after = before.patched(StreamPatch(confidence=None, max_fps=5.0))
    assert (after.confidence, after.max_fps, after.classes, after.loop) == (None, 5.0, ["person"], True)
    assert (after.id, after.username, after.password) == ("a", "u", SecretStr("p"))
    moved = before.patched(StreamPatch(url="rtsp://h2.example/x"))
    assert (moved.url, moved.username, moved.password) == ("rtsp://h2.example/x", "u", SecretStr("p"))
    renewed = before.patched(StreamPatch(url="rtsp://v@h2.example/x"))
    assert (renewed.username, renewed.password) == ("v", None)
    explicit = before.patched(StreamPatch(url="rtsp://v:w@h2.example/x", username="z"))
    assert (explicit.username, explicit.password) == ("z", SecretStr("w"))
    opened = before.patched(StreamPatch(username=None, password=None))
    assert (opened.username, opened.password) == (None, None)


def test_a_patch_is_judged_together_with_what_was_there() -> None:
    shape = {"name": "door", "points": [[0, 0], [1, 0], [1, 1]]}
    before = StreamDefinition.model_validate({"url": "rtsp://h", "zones": [shape]})
    with pytest.raises(ValidationError, match=r"lines\.0\.name: 'door' is there already"):
        before.patched(StreamPatch.model_validate({"lines": [shape | {"points": [[0, 0], [1, 0]]}]}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence", 1.01), ("confidence", float("nan")), ("confidence", "0.5"), ("confidence", True),
        ("iou", -0.1), ("weight", 0.0), ("weight", float("inf")), ("max_fps", 0.0), ("max_staleness_ms", 0.0),
        ("transport", "TCP"), ("loop", "yes"), ("loop", 1), ("classes", "person"), ("classes", [1]),
        ("class_confidence", {"person": 2.0}), ("username", "a\nb"), ("username", "\ud800"), ("password", "a\x00b"),
        ("decoder", "gpu"), ("detect_url", "rtsp://u:p@h/x"), ("detect_url", ""), ("detect_url", "a\x00b"),
        ("zones", [{"a": float("nan")}]), ("zones", [{"name": "\ud800"}]), ("zones", [1]), ("lines", [{}]),
        ("id", "a/b"), ("id", ""), ("id", "x" * 65), ("url", ""), ("url", "  "), ("url", "a\x00b"), ("colour", "red"),
    ],
)  # fmt: skip
def test_bad_values(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        StreamDefinition.model_validate({"url": "rtsp://h"} | {field: value})
    assert {e["loc"][0] for e in caught.value.errors()} == {field}
