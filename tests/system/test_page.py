"""The page as people use it, in Chromium: by clicks and keys, on a real server with a real camera."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from page_scene import BLUE, CELL, FPS, FRAMES, HEIGHT, RECORD, RED_TOP, WIDTH, red_left, scene
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle

from server.testing.camera import Camera, Mount

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian package needed: chromium"),
]
TOKEN = "a-token-for-the-page"
MAX_BYTES = 300_000
expect = sync_api.expect
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def camera() -> Iterator[Camera]:
    with Camera({"/yard": Mount(scene())}) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("page")
    model = tiny_bundle(folder / "tiny", input_size=WIDTH).path
    with ServerProcess(model, folder / "data", "--token", TOKEN) as running:
        running.http.headers["Authorization"] = f"Bearer {TOKEN}"
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield launched
        launched.close()


class Complaints(list[str]):
    """What the browser's console reports as an error; a test that brings some about says so."""

    def heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.append(message.text)

    def expected(self, text: str) -> None:
        self[:] = [line for line in self if text not in line]


@pytest.fixture(scope="module")
def tab(browser: Any, server: ServerProcess) -> Iterator[tuple[Any, Complaints, list[tuple[str, int]]]]:
    """The page of one browser for all tests, logged in by the form; and what it complained of, and what it loaded."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark", reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints, loaded = Complaints(), []
    page.on("console", complaints.heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfinished", lambda request: loaded.append((request.url, request.sizes()["responseBodySize"])))
    page.goto(server.address)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("The token is wrong.")).to_be_visible()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Cameras", exact=True)).to_be_visible()
    complaints.expected("401")
    yield page, complaints, loaded
    context.close()


@pytest.fixture
def page(tab: tuple[Any, Complaints, list[tuple[str, int]]]) -> Iterator[Any]:
    """The page, which must not have complained when the test ends."""
    yield tab[0]
    assert tab[1] == []


ALL_RULES = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]


def check_accessible(page: Any, rules: Sequence[str] = ALL_RULES) -> None:
    """axe-core: contrast, names of controls, roles, order of headings."""
    found = axe.Axe().run(page, options={"runOnly": rules})
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture(scope="module")
def yard(tab: Any, server: ServerProcess, camera: Camera) -> Any:
    """A camera, added by clicks. Tests of what fields and buttons say come with it, as they happen on the way."""
    page, complaints, _ = tab
    expect(page.get_by_text("No cameras yet")).to_be_visible()
    check_accessible(page)
    page.get_by_role("button", name="Add camera").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("no good name")
    dialog.get_by_label("Confidence", exact=True).fill("7")
    dialog.get_by_role("button", name="Add camera").click()
    for field in ("Name", "Address", "Confidence"):
        expect(dialog.get_by_label(field, exact=True)).to_have_attribute("aria-invalid", "true")
    expect(dialog.get_by_label("Name", exact=True)).to_be_focused()
    check_accessible(page)
    complaints.expected("422")
    dialog.get_by_label("Name", exact=True).fill("yard")
    dialog.get_by_label("Confidence", exact=True).fill("")
    dialog.get_by_label("Address").fill(camera.url("/none"))
    dialog.get_by_role("button", name="Test").click()
    expect(dialog.get_by_text("the camera has no such address")).to_be_visible()
    dialog.get_by_label("Address").fill(camera.url("/yard"))
    dialog.get_by_role("button", name="Test").click()
    expect(dialog.get_by_text(f"It works: H.264, {WIDTH} × {HEIGHT}")).to_be_visible()
    dialog.get_by_role("button", name="Add camera").click()
    expect(dialog).to_have_count(0)
    expect(page.locator("canvas.overlay[data-seq]")).to_be_attached()
    return page


def test_a_camera_is_added_by_clicks(yard: Any, page: Any, server: ServerProcess) -> None:
    assert server.http.get("/streams").json()[0]["id"] == "yard"
    expect(page.get_by_text("1 of 1 running")).to_be_visible()
    expect(page.locator("[data-badge=latency]")).to_be_visible()
    expect(page.locator("[data-badge=drops], .badge", has_text="dropped").first).to_be_visible()


def test_boxes_are_drawn_on_the_very_frame_that_they_belong_to_and_soon(
    yard: Any, page: Any, tab: Any, camera: Camera
) -> None:
    page.goto(f"{page.url.partition('#')[0]}#/camera/yard")
    expect(page.locator("canvas.overlay[data-seq]")).to_be_attached()
    shown = page.evaluate(RECORD, {"frames": 3 * FPS, "seconds": 15, "redBottom": (RED_TOP + CELL) / HEIGHT})
    tab[1].expected("readback")  # by this test
    assert len(shown) == 3 * FPS
    for one in shown:
        left = red_left(one["number"]) / WIDTH
        assert one["edges"] == pytest.approx([left, left + CELL / WIDTH], abs=0.01), one
    assert len({one["number"] for one in shown}) > FPS
    behind = sorted(_behind(one, camera) for one in shown)
    assert behind[len(behind) // 2] < 0.3, behind


PAIRING = """
async () => {
  const {Pairing} = await import("/web/js/pairing.js");
  const log = [];
  const pairing = new Pairing();
  const take = () => {
    const pair = pairing.take();
    log.push(pair && [pair.picture.seq, pair.result.seq, pair.skipped.map(({seq}) => seq)]);
  };
  pairing.addPicture({seq: 1}); take();              // no result yet
  pairing.addResult({seq: 1}); take(); take();       // now, and once only
  for (const seq of [2, 3, 4]) pairing.addResult({seq});
  for (const seq of [2, 3, 5]) pairing.addPicture({seq});
  take();                                            // the newest that is whole; 5 goes on waiting
  pairing.addResult({seq: 5}); take();
  log.push([6, 7, 8, 9, 10].flatMap((seq) => pairing.addPicture({seq})).map(({seq}) => seq));  // few wait
  for (let seq = 100; seq < 300; seq++) pairing.addResult({seq});
  pairing.addPicture({seq: 101}); take();            // so late that its result is forgotten
  pairing.clear(); pairing.addResult({seq: 1}); pairing.addPicture({seq: 1}); take();  // numbered anew
  return log;
}
"""


def test_a_picture_is_paired_with_its_own_result_whichever_comes_first(yard: Any, page: Any) -> None:
    assert page.evaluate(PAIRING) == [None, [1, 1, []], None, [3, 3, [2]], [5, 5, []], [6], None, [1, 1, []]]


def _behind(shown: dict[str, Any], camera: Camera) -> float:
    """Seconds from the camera's sending of a picture to its being on the canvas. The clip repeats every few seconds."""
    monotonic = shown["at"] - time.time() + time.monotonic()
    sent = [frame.sent_at for frame in camera.sent("/yard") if frame.index == shown["number"] % FRAMES]
    return monotonic - max(at for at in sent if at < monotonic)


def test_zones_and_lines_are_drawn_with_the_mouse_and_moved_with_keys(
    yard: Any, page: Any, server: ServerProcess
) -> None:
    page.goto(f"{page.url.partition('#')[0]}#/camera/yard")
    page.get_by_role("tab", name="Zones & lines").click()
    page.get_by_role("button", name="Draw a zone").click()
    left, top = BLUE[0] / WIDTH - 0.1, BLUE[1] / HEIGHT - 0.1
    right, bottom = left + CELL / WIDTH + 0.2, 0.97
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    for corner in [*corners, corners[0]]:
        _click(page, *corner)
    page.get_by_label("Name", exact=True).fill("bench")
    page.get_by_role("button", name="Draw a line").click()
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    check_accessible(page)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Zones and lines are saved")).to_be_visible()
    saved = server.http.get("/streams/yard").json()
    (zone,), (line,) = saved["zones"], saved["lines"]
    assert zone["name"] == "bench"
    assert [value for point in zone["points"] for value in point] == pytest.approx(
        [value for corner in corners for value in corner], abs=0.01
    )
    assert line["points"] == [[0.25, 0.5], [0.25, 0.55]]
    handle = page.get_by_role("button", name="Point 2 of line-1: arrow keys move it")
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Save", exact=True).click()
    wait_for(lambda: server.http.get("/streams/yard").json()["lines"][0]["points"][1] == [0.255, 0.55], 10, "the move")


def test_what_happens_in_a_zone_is_seen_with_its_picture(yard: Any, page: Any, server: ServerProcess) -> None:
    """In the zone that was drawn before."""
    wait_for(lambda: server.http.get("/events?zone=bench").json()["events"], 20, "an event in the zone")
    page.goto(f"{page.url.partition('#')[0]}#/events")
    page.get_by_label("Zone").select_option("bench")
    expect(page.locator(".events li")).not_to_have_count(0)
    event = page.locator(".events button").first
    expect(event).to_contain_text("bench")
    expect(event.locator("img")).to_have_js_property("complete", True)
    assert event.locator("img").evaluate("(image) => image.naturalWidth") > 0
    event.click()
    expect(page.get_by_role("dialog").get_by_text("entered bench")).to_be_visible()
    check_accessible(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Class").select_option("red")
    expect(page.get_by_text("No event fits these filters.")).to_be_visible()


def _click(page: Any, x: float, y: float) -> None:
    """At a place of the picture, in shares of it."""
    box = page.locator(".shape-canvas").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_settings_are_changed_and_what_is_wrong_stands_at_its_field(
    yard: Any, page: Any, tab: Any, server: ServerProcess
) -> None:
    page.goto(f"{page.url.partition('#')[0]}#/camera/yard")
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("Classes", exact=True).fill("red, unicorn")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#field-classes-fault")).to_contain_text("unicorn")
    tab[1].expected("422")
    page.get_by_label("Classes", exact=True).fill("red, blue")
    page.get_by_role("button", name="Test").click()
    expect(page.get_by_text("It works")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    wait_for(lambda: server.http.get("/streams/yard").json()["classes"] == ["red", "blue"], 10, "the change")
    expect(page.get_by_role("tab", name="Overview")).to_have_attribute("aria-selected", "true")


VIEWS = ["cameras", "camera/yard", "events", "models", "health"]


@pytest.mark.parametrize(("theme", "rules"), [("dark", ALL_RULES), ("light", ["color-contrast"])])
def test_every_view_is_accessible_in_both_themes_and_fits_a_phone(
    yard: Any, page: Any, theme: str, rules: list[str], tmp_path: Path
) -> None:
    root = page.url.partition("#")[0]
    page.emulate_media(color_scheme=theme)
    for view in VIEWS:
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"{root}#/{view}")
        expect(page.locator("main h1")).to_be_visible()
        expect(page.locator("main .notice .spinner")).to_have_count(0)
        check_accessible(page, rules)
        page.set_viewport_size({"width": 390, "height": 844})
        page.screenshot(path=tmp_path / f"{view.replace('/', '-')}-{theme}-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="dark")


def test_the_theme_can_be_chosen(yard: Any, page: Any) -> None:
    ground: Callable[[], str] = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = ground()
    page.get_by_role("button", name="Switch to the light theme").click()
    light = ground()
    assert light != dark
    page.reload()
    assert ground() == light
    page.get_by_role("button", name="Switch to the dark theme").click()
    assert ground() == dark


def test_a_server_that_is_gone_is_said_and_it_comes_back_by_itself(yard: Any, page: Any, tab: Any) -> None:
    page.goto(f"{page.url.partition('#')[0]}#/cameras")
    page.route("**/*", lambda route: route.abort())
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    expect(page.get_by_text("Trying again in").first).to_be_visible()
    page.unroute("**/*")
    expect(page.get_by_text("The server does not answer.")).to_have_count(0)
    tab[1].expected("net::ERR_FAILED")


def test_the_page_is_light(yard: Any, tab: Any) -> None:
    page, _, loaded = tab
    del loaded[:]
    page.reload()
    expect(page.locator("canvas.overlay[data-seq]").first).to_be_attached()
    bodies = {url: size for url, size in loaded if "/web/" in url or url.endswith(("/", "/openapi.json"))}
    assert any(url.endswith("main.js") for url in bodies)
    uncompressed = sum(_size(page, url) for url in bodies)
    assert 0 < uncompressed < MAX_BYTES


def _size(page: Any, url: str) -> int:
    return int(page.evaluate("async (url) => (await (await fetch(url)).arrayBuffer()).byteLength", url))


def test_a_camera_is_removed_by_clicks(yard: Any, page: Any, server: ServerProcess) -> None:
    page.goto(f"{page.url.partition('#')[0]}#/camera/yard")
    page.get_by_role("tab", name="Settings").click()
    page.get_by_role("button", name="Remove this camera").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.get_by_text("No cameras yet")).to_be_visible()
    assert server.http.get("/streams").json() == []
