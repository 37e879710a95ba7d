"""A person at a real browser: Debian's Chromium without a window, driven over its own driver.

The browser resolves no name: whatever a page wants from elsewhere than an address of this machine fails, and is noted.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.harness.tools import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from selenium.webdriver.remote.webelement import WebElement

Stroke = list[tuple[float, float]]
"""Points of one stroke of the pen, between 0 and 1 from left to right and from top to bottom."""
WAIT_S = 100.0
TREE: list[Stroke] = [
    [(0.15, 0.35), (0.85, 0.35)],
    [(0.5, 0.12), (0.5, 0.88)],
    [(0.48, 0.37), (0.35, 0.6), (0.15, 0.78)],
    [(0.52, 0.37), (0.65, 0.6), (0.85, 0.78)],
]
"""木, as it is written."""


class Browser:
    """One window.

    Args:
        profile: a directory of its own.
    """

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = require("chromium")
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--lang=en",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # its sandbox refuses root
        for argument in arguments:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=require("chromedriver"))
        self._driver = webdriver.Chrome(options=options, service=service)
        self._driver.execute_cdp_cmd("Network.enable", {})

    def close(self) -> None:
        """End the browser."""
        self._driver.quit()

    def open(self, url: str) -> None:
        """Go to a page."""
        self._driver.get(url)

    def view(self, width: int, height: int, *, is_dark: bool = False, is_phone: bool = False) -> None:
        """Look through a window of that size, in CSS pixels; scroll bars lie over the page, as on phones."""
        self._driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._driver.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        """Return the one element of a CSS selector."""
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text that an element shows, empty while there is none."""
        found = self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return str(found).strip()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition and return what it returned."""
        return WebDriverWait(self._driver, WAIT_S, 0.05).until(lambda _driver: condition(), what)

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        self.until(lambda: text in self.text(selector), f"{selector} does not show {text!r}: {self.text(selector)!r}")

    def click(self, selector: str) -> None:
        """Click on an element, once it can be clicked."""

        def clicked() -> bool:
            element = self.one(selector)
            if not (element.is_enabled() and element.is_displayed()):
                return False
            self.run("arguments[0].scrollIntoView({block: 'center'})", element)
            try:
                element.click()
            except (ElementClickInterceptedException, StaleElementReferenceException):
                return False  # a section that came in between moved it
            return True

        self.until(clicked, f"no {selector} that can be clicked")

    def draw(self, selector: str, strokes: Sequence[Stroke]) -> None:
        """Draw with the mouse."""
        pad = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", pad)
        self.until(lambda: pad.size["width"] and pad.size["height"], f"{selector} has no size")
        width, height = pad.size["width"], pad.size["height"]
        chain = ActionChains(self._driver, duration=20)
        for stroke in strokes:
            for index, (x, y) in enumerate(stroke):
                chain.move_to_element_with_offset(pad, round((x - 0.5) * width), round((y - 0.5) * height))
                if index == 0:
                    chain.click_and_hold()
            chain.release()
        chain.perform()

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        self._driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """Return what the console got since the last call."""
        return [str(entry["message"]) for entry in self._log("browser")]

    def requested(self) -> list[str]:
        """Return the address of every request that went to the network, or should have, since the last call."""
        told = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [each["params"]["request"]["url"] for each in told if each["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if url.startswith(("http", "ws"))]

    def become(self, html: str) -> None:
        """Let the page's document be ``html``, as if the agent had sent it: its policy stays in force."""
        frame = self._driver.execute_cdp_cmd("Page.getFrameTree", {})["frameTree"]["frame"]["id"]
        self._driver.execute_cdp_cmd("Page.setDocumentContent", {"frameId": frame, "html": html})

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries
