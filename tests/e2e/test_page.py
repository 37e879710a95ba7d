"""The page in a real browser, against a real agent: what a person sees, asks and does there.

The tests build on one device and one window, and run in their order.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.e2e.harness.browser import TREE, Browser
from tests.e2e.harness.operator import MODEL
from tests.e2e.harness.processes import resident_bytes
from tests.faults.harness_network import Link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.harness.world import Device, StartDevice, World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

TOKEN = "token-of-the-page-0123456789"
MAX_SUPERVISOR_BYTES = 64 * 2**20
METHOD = "#models .method"
BEST = "#answer .ranking li:first-child .label"


@pytest.fixture(scope="module")
def device(start_device: StartDevice, world: World, tmp_path_factory: pytest.TempPathFactory) -> Device:
    tokens = tmp_path_factory.mktemp("tokens") / "page.tokens"
    tokens.write_text(TOKEN)
    tokens.chmod(0o600)
    own = {"ENABLED": "true", "PORT": "0", "TOKEN_FILE": str(tokens)}
    device = start_device("page", environment={f"NIBBLED_STATUS__{name}": value for name, value in own.items()})
    operator = device.operator
    manifest = operator.manifest(world.checkpoint, version="v1")
    assert operator.result(operator.deploy(manifest, method="nf4"))["state"] == "succeeded"
    return device


@pytest.fixture(scope="module")
def link(device: Device) -> Iterator[Link]:
    """The way from the window to the agent, as a tunnel of ssh would be."""
    with contextlib.closing(Link(int(device.agent.logged("page")["url"].rstrip("/").rpartition(":")[2]))) as link:
        yield link


@pytest.fixture(scope="module")
def url(link: Link) -> str:
    return f"http://127.0.0.1:{link.port}/"


@pytest.fixture(scope="module")
def window(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.view(1280, 900)
        browser.open(url)
        browser.shows("#link", "live")
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(window: Browser, url: str) -> Iterator[Browser]:
    """The window; whatever a test does there, the console stays empty and nobody but the agent is asked."""
    window.complaints()
    yield window
    assert window.complaints() == []
    assert [asked for asked in window.requested() if not asked.startswith(url)] == []


def refused(page: Browser, status: int) -> None:
    """Let the console hold the one line that a browser writes there for a refusal, and nothing else."""
    (told,) = page.complaints()
    assert f"status of {status}" in told


def test_what_is_served_and_why_is_told_with_its_figures(page: Browser, device: Device) -> None:
    page.shows(METHOD, "nf4")
    assert page.text("#device") == device.agent.device_id
    reported = device.operator.served()
    assert f"version {reported['version']}" in page.text("#models")
    row = page.text("#models tr.kept")
    assert row.startswith("nf4")
    assert "kept" in row
    assert "100.0 %" in row or f"{100 * reported['agreement']:.1f} %" in row
    page.click("#models details details summary")
    page.shows("#models details details", "nf4 (4 bits a weight")
    page.shows("#memory", "available according to the system (/proc/meminfo)")
    page.shows("#operations li:first-child", "succeeded")
    page.shows("#events", "operation ended")
    page.shows("#health", "connected")


def test_a_character_that_is_drawn_with_the_mouse_is_read(page: Browser) -> None:
    page.draw("#pad", TREE)
    page.shows(BEST, "木")
    page.shows("#answer", "Answered by nf4, version v1")


def test_an_upload_is_read_dark_on_bright_and_bright_on_dark(
    page: Browser, world: World, kanji: Path, tmp_path: Path
) -> None:
    classes = json.loads((kanji / "classes.json").read_text(encoding="utf-8"))["classes"]
    page.click("input[value=image]")
    for index, is_dark in ((0, True), (1, False)):
        pixels = np.round(255 * world.images.inputs[index, 0])
        file = tmp_path / f"{index}.png"
        Image.fromarray((255 - pixels if is_dark else pixels).astype(np.uint8)).resize((300, 300)).save(file)
        page.one("#file").send_keys(str(file))
        page.shows(BEST, classes[world.images.labels[index]])


def test_any_request_of_the_protocol_is_asked_as_json_from_an_example_of_the_metadata(page: Browser) -> None:
    page.click("input[value=json]")
    example = json.loads(page.run("return document.getElementById('json').value"))
    assert [(each["name"], each["shape"], len(each["data"])) for each in example["inputs"]] == [
        ("input", [1, 1, 64, 64], 4096)
    ]
    page.click("#try button[type=submit]")
    page.shows("#answer", "Answered by nf4")
    page.run("document.getElementById('json').value = '{\"inputs\": []}'")
    page.click("#try button[type=submit]")
    page.shows("#answer .bad", "input")
    refused(page, 400)
    page.click("input[value=draw]")


def test_a_switch_by_command_is_seen_without_a_reload(page: Browser, device: Device) -> None:
    page.run("window.isTheSame = true")
    operator = device.operator
    switched = operator.send("set_method", model=MODEL, method="nf4-dq")
    page.shows(f"#operations li[data-id='{switched}']", "set method")
    assert operator.result(switched)["state"] == "succeeded"
    page.until(lambda: page.text(METHOD) == "nf4-dq", "the switch is not seen")
    page.shows(f"#operations li[data-id='{switched}']", "succeeded")
    page.shows("#events", f"id {switched}")
    assert page.run("return window.isTheSame") is True


def test_the_other_cached_method_answers_beside_the_one_that_serves(page: Browser) -> None:
    page.shows("#compare-text", "in the store: nf4")
    page.click("#try button[type=submit]")
    page.shows("#answer", "Answered by nf4-dq")
    page.click("#compare")
    page.shows("#others tr.kept", "serves")
    row = page.text("#others tr[data-method=nf4]")
    assert row.startswith("nf4")
    assert "木" in row
    assert "the same" in row


def test_without_a_token_the_page_offers_nothing_that_changes_and_the_agent_refuses_it(
    page: Browser, url: str, device: Device
) -> None:
    assert page.run("return document.querySelectorAll('.actions').length") == 0
    mark = device.operator.mark()
    address, headers = f"{url}commands/rollback", {"Content-Type": "application/json"}
    asked = urllib.request.Request(address, b'{"model": "kanji"}', headers)  # noqa: S310 - loopback
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=10)  # noqa: S310 - as above
    assert caught.value.code == 401
    caught.value.close()
    assert device.operator.served()["method"] == "nf4-dq"
    rollbacks = [
        each
        for each in device.operator.subscriber.on(device.operator.topic("event"), since=mark)
        if each.get("command") == "rollback"
    ]
    assert rollbacks == []


def test_a_wrong_token_is_told_and_a_right_one_switches_and_rolls_back(page: Browser, device: Device) -> None:
    page.click("#unlock")
    page.one("#ask-secret").send_keys("wrong-wrong-wrong-wrong")
    page.click("#ask-yes")
    page.shows("#ask-error", "not known")
    refused(page, 401)
    page.one("#ask-secret").clear()
    page.one("#ask-secret").send_keys(TOKEN)
    page.click("#ask-yes")
    page.shows("#models .actions", "Switch")
    page.one("#models .actions option[value=nf4]").click()
    press(page, "Switch", device)
    page.until(lambda: page.text(METHOD) == "nf4", "the switch is not seen")
    press(page, "Roll back", device)
    page.until(lambda: page.text(METHOD) == "nf4-dq", "the way back is not seen")
    page.click("#unlock")
    page.until(lambda: page.run("return document.querySelectorAll('.actions').length") == 0, "it stays unlocked")
    kept = "JSON.stringify([document.documentElement.outerHTML, {...localStorage, ...sessionStorage}, document.cookie])"
    assert TOKEN not in page.run(f"return {kept}")


def press(page: Browser, text: str, device: Device) -> None:
    """Press a button of the model, confirm, and wait for the end of the operation."""
    enabled = "[...document.querySelectorAll('.actions button:enabled')]"
    script = f"return {enabled}.find((button) => button.textContent === arguments[0])"
    page.until(lambda: page.run(script, text), f"no button {text}").click()
    page.click("#ask-yes")
    page.shows("#note", "Sent as operation page-")
    operation_id = page.text("#note").removeprefix("Sent as operation ").rstrip(".")
    assert device.operator.result(operation_id)["state"] == "succeeded"


def test_markup_in_what_the_device_says_is_shown_as_text(page: Browser, device: Device) -> None:
    hostile = "<img src=x onerror='window.isHacked = true'><b>bold</b>"
    sent = device.operator.send("set_method", model=MODEL, method=hostile)
    assert device.operator.result(sent)["state"] == "rejected"
    for place in (f"#operations li[data-id='{sent}']", "#events"):
        page.shows(place, "<b>bold</b>")
        assert (
            page.run("return document.querySelectorAll(arguments[0] + ' img,' + arguments[0] + ' b').length", place)
            == 0
        )
    assert page.run("return window.isHacked ?? false") is False


def test_a_model_that_takes_no_image_is_asked_in_json_alone(page: Browser, device: Device, world: World) -> None:
    operator, source = device.operator, Path(__file__).parents[1] / "data" / "trained_rnn" / "rnn.pt"
    manifest = operator.manifest(world.files.host("rnn.pt", source.read_bytes()), model="strokes")
    sent = operator.send("deploy", model="strokes", manifest=world.signer.seal(manifest), method="nf4")
    assert operator.result(sent)["state"] == "succeeded"
    page.until(lambda: page.run("return document.querySelectorAll('#models article').length") == 2, "one card only")
    page.one("#try-model option[value=strokes]").click()
    page.until(lambda: not page.one("input[value=draw]").is_displayed(), "a pad for what is no image")
    example = json.loads(page.run("return document.getElementById('json').value"))
    with urllib.request.urlopen(f"{device.agent.url}/models/strokes", timeout=10) as response:  # noqa: S310 - loopback
        inputs = json.loads(response.read())["inputs"]
    assert [each["name"] for each in example["inputs"]] == [each["name"] for each in inputs]
    page.click("#try button[type=submit]")
    page.shows("#answer", "Answered by nf4")
    assert "class" in page.text(BEST), "its checkpoint names none"
    page.one(f"#try-model option[value={MODEL}]").click()
    page.until(lambda: page.one("input[value=draw]").is_displayed(), "no pad for an image")


def test_a_connection_that_breaks_is_told_and_taken_up_again_with_what_came_meanwhile(
    window: Browser, link: Link, device: Device
) -> None:
    link.cut()
    link.reset()
    window.shows("#link", "no connection")
    sent = device.operator.send("rollback", model="nobody")
    device.operator.result(sent)
    link.mend()
    window.shows("#link", "live")
    window.shows("#events", sent)
    told = window.run("return [...document.querySelectorAll('#events li')].map((item) => item.innerText)")
    assert len(told) == len(set(told)), "an event is told twice"
    assert "operation ended" in told[-1] or "command accepted" in told[-1], "what was told before is gone"
    window.complaints()  # that the connection broke


@pytest.mark.parametrize("mode", ["draw", "image", "json"])
def test_a_phone_scrolls_in_one_direction_only(page: Browser, mode: str) -> None:
    page.view(360, 740, is_phone=True)
    page.click(f"input[value={mode}]")
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    outside = page.run(
        "return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, .skip, .unseen')"
        " && e.getBoundingClientRect().right > 360.5).map((e) => e.id || e.className || e.tagName)"
    )
    assert outside == []
    page.view(1280, 900)


def test_everything_that_can_be_used_has_a_name_and_is_reached_by_the_keyboard(page: Browser) -> None:
    used = "button, select, input, textarea, .scroll"
    nameless = page.run(
        "return [...document.querySelectorAll(arguments[0] + ', [role=img]')]"
        ".filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.id || e.outerHTML)",
        used,
    )
    assert nameless == []
    assert (
        page.run("return [...document.querySelectorAll('button, select, input, textarea')].some((e) => e.tabIndex < 0)")
        is False
    )
    assert page.run("return document.documentElement.lang") == "en"


def test_text_stands_out_from_its_ground_in_both_schemes(page: Browser) -> None:
    for is_dark in (False, True):
        page.view(1280, 900, is_dark=is_dark)
        assert page.run(CONTRAST) == []
    page.view(1280, 900)


CONTRAST = """
const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = numbers(getComputedStyle(each).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
};
return [...document.querySelectorAll('body *')].filter((element) => {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility() || element.closest(':disabled, .unseen, .skip')) return false;
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
}).map((element) => `${element.tagName} ${element.className}: ${element.textContent.slice(0, 30)}`);
"""


def test_the_supervisor_stays_small_with_the_page_open(device: Device, window: Browser) -> None:
    assert window.text("#link") == "live"
    assert resident_bytes(device.agent.pid) <= MAX_SUPERVISOR_BYTES


def test_no_script_runs_that_does_not_come_from_the_agent(window: Browser) -> None:
    window.become(
        "<p id=p style='color: rgb(1, 2, 3)' onclick='window.isHacked = true'>text</p>"
        "<script>window.isHacked = true</script><script src='http://127.0.0.1:9/x.js'></script>"
    )
    window.run("document.getElementById('p').click()")
    assert window.run("return [window.isHacked ?? false, getComputedStyle(document.getElementById('p')).color]") == [
        False,
        "rgb(0, 0, 0)",
    ]
    assert any("script-src" in told for told in window.complaints())
    attempt = "try { document.body.innerHTML = '<b>text</b>'; } catch (error) { return error.message; }"
    assert "TrustedHTML" in window.run(attempt), "not even the page's own scripts make markup of a text"
