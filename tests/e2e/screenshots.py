"""``make screenshots``: the pictures of docs/page.md, of a real agent at work, in a real browser.

python -m tests.e2e.screenshots docs/page
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.e2e.harness.browser import TREE, Browser
from tests.e2e.harness.device import Agent
from tests.e2e.harness.files import FileServer
from tests.e2e.harness.inference import Images, load
from tests.e2e.harness.mqtt import Broker, Subscriber
from tests.e2e.harness.operator import MODEL, Operator
from tests.e2e.harness.signing import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator

KANJI = Path(__file__).parents[2] / "deploy" / "demo" / "kanji"
TOKEN = "a-token-for-the-pictures"
COLOURS, MAX_BYTES = 128, 200_000
POINTS = 25
"""Of the lines of throughput and latency, which are waited for: one every two seconds."""


@contextlib.contextmanager
def device(folder: Path) -> Iterator[tuple[Agent, Operator]]:
    """Run a broker, a file server and an agent that serves the demo's model by its own choice."""
    places = {name: folder / name for name in ("broker", "trust", "private", "agent")}
    for place in places.values():
        place.mkdir()
    tokens = folder / "tokens"
    tokens.write_text(TOKEN)
    tokens.chmod(0o600)
    with contextlib.ExitStack() as stack:
        broker, files = Broker(places["broker"]), FileServer()
        stack.callback(broker.stop)
        broker.start()
        subscriber = Subscriber(broker.port)
        stack.callback(subscriber.close)
        stack.callback(files.close)
        checkpoint, dataset = (
            files.host(name, (KANJI / name).read_bytes()) for name in ("checkpoint_best.pt", "evaluation.safetensors")
        )
        operator = Operator(
            "box-17", broker.port, subscriber, Signer(places["trust"], places["private"], "operator"), dataset
        )
        own = {"ENABLED": "true", "PORT": "0", "TOKEN_FILE": str(tokens)}
        environment = {f"NIBBLED_STATUS__{name}": value for name, value in own.items()}
        agent = Agent("box-17", places["agent"], broker.port, places["trust"], environment=environment)
        stack.callback(agent.close)
        agent.start()
        operator.await_online()
        for method in ("int8", "nf4-dq"):
            sent = operator.deploy(operator.manifest(checkpoint, version="2026-11"), method=method)
            assert operator.result(sent)["state"] == "succeeded"
        sent = operator.deploy(operator.manifest(checkpoint, version="2026-12"), method="auto")
        assert operator.result(sent)["state"] == "succeeded"
        yield agent, operator


def take(browser: Browser, path: Path) -> None:
    """Write what the window shows in few colours, as PNG of less than 200 KB."""
    with tempfile.NamedTemporaryFile(suffix=".png") as whole:
        browser.screenshot(Path(whole.name))
        image = Image.open(whole.name).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    assert content.tell() < MAX_BYTES, f"{path}: {content.tell()} bytes"
    path.write_bytes(content.getvalue())
    sys.stdout.write(f"{path}: {image.width} x {image.height}, {content.tell()} bytes\n")


def play(browser: Browser, operator: Operator) -> None:
    """Do on the page what the pictures show."""
    browser.shows("#link", "live")
    browser.click("#unlock")
    browser.one("#ask-secret").send_keys(TOKEN)
    browser.click("#ask-yes")
    browser.shows(".actions", "Switch")
    assert operator.result(operator.send("set_method", model=MODEL, method="nf5"))["state"] == "rejected"
    browser.draw("#pad", TREE)
    browser.shows("#answer", "木")
    browser.click("#compare")
    browser.shows("#others", "the same")
    line = "return document.querySelector('.line path').getAttribute('d').split('L').length"
    browser.until(lambda: browser.run(line) >= POINTS, "no throughput")
    browser.run("scrollTo(0, 0); document.activeElement.blur()")


def main() -> None:
    """Take the pictures."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        agent, operator = stack.enter_context(device(folder))
        stack.enter_context(load(agent.url, MODEL, Images(KANJI / "evaluation.safetensors", 1).inputs, threads=1))
        browser = Browser(folder / "profile")
        stack.callback(browser.close)
        browser.view(1280, 1330)
        browser.open(str(agent.logged("page")["url"]))
        play(browser, operator)
        take(browser, target / "desktop.png")
        browser.view(1280, 1330, is_dark=True)
        take(browser, target / "dark.png")
        browser.view(390, 844, is_phone=True)
        take(browser, target / "phone.png")
        browser.run("document.getElementById('trying').scrollIntoView()")
        take(browser, target / "phone-try.png")


if __name__ == "__main__":
    main()
