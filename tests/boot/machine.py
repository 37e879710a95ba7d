"""A Debian that boots the real systemd in a namespace of its own (systemd-nspawn), with this tree's installer in it.

The root file system is made once by ``make boot``; every machine runs on a copy of it. torch is this environment's,
mounted where a Jetson has the one of its JetPack: outside every environment, with a Python that pip finds it by.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TREE = Path(__file__).parents[2]
BASE = Path(os.environ.get("BOOT_BASE", TREE / ".boot"))
"""Holds ``rootfs`` and ``wheelhouse``."""
DIST_PACKAGES = "/usr/local/lib/python3.11/dist-packages"
BOOT_S, EVENT_S = 60.0, 120.0


def borrowed() -> list[str]:
    """Return the mounts that show torch and what it needs to the machine's own Python."""
    mounts: dict[str, str] = {}
    waiting = ["torch"]
    while waiting:
        found = metadata.distribution(waiting.pop())
        for file in found.files or ():
            top = file.parts[0]
            if top in {"..", "__pycache__"} or top in mounts:
                continue
            mounts[top] = str(found.locate_file(top))
        for need in found.requires or ():
            name = need.partition(";")[0].split("=")[0].split(">")[0].split("<")[0].split("[")[0].strip(" ~!(")
            if "extra" not in need and "platform_system" not in need and metadata.distribution(name).metadata["Name"]:
                head = next(iter(metadata.distribution(name).files or ())).parts[0]
                if head not in mounts:
                    waiting.append(name)
    return [f"--bind-ro={path}:{DIST_PACKAGES}/{top}" for top, path in mounts.items()]


class Machine:
    """Boots, and does what it is told as root."""

    def __init__(self, folder: Path) -> None:
        if not (BASE / "rootfs").is_dir() or shutil.which("systemd-nspawn") is None or os.geteuid() != 0:
            pytest.skip("needs root, systemd-nspawn and the root file system that make boot makes")
        self.root = folder / "rootfs"
        subprocess.run(["cp", "-a", "--reflink=auto", str(BASE / "rootfs"), str(self.root)], check=True)
        self._log = folder / "console.log"
        self._child: subprocess.Popen[bytes] | None = None
        mounts = [f"--bind-ro={TREE}:/src", f"--bind-ro={BASE / 'wheelhouse'}:/wheels", *borrowed()]
        keep = ["-q", "--register=no", "--keep-unit", "--private-network", "--kill-signal=SIGRTMIN+3"]
        self._command = ["systemd-nspawn", *keep, "-D", str(self.root), *mounts]

    def before_boot(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree while no system runs in it, as an image is prepared."""
        return subprocess.run([*self._command, "--", *command], capture_output=True, text=True, check=False)

    def boot(self) -> None:
        """Start the system and wait until it is up."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [*self._command, "--boot"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.eventually(lambda: self.tell("systemctl", "is-system-running").strip() in {"running", "degraded"}, BOOT_S)

    def shut_down(self) -> None:
        """Stop the system in order."""
        if self._child is not None:
            self._child.terminate()
            try:
                self._child.wait(90.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the running system."""
        leader = self._leader()
        if leader is None:
            return subprocess.CompletedProcess(command, 125, "", "the machine does not run")
        return subprocess.run(
            ["nsenter", "--target", leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--", *command],
            capture_output=True,
            text=True,
            check=False,
        )

    def tell(self, *command: str) -> str:
        """Return what a command printed."""
        return self.run(*command).stdout

    def show(self, name: str, unit: str = "nibbled.service") -> str:
        """Return a property of a unit."""
        return self.tell("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self) -> str:
        """Return what the service and the manager said about it."""
        return self.tell("journalctl", "--no-pager", "-u", "nibbled.service")

    def http(self, path: str) -> Any:
        """Return the JSON that the inference port answers with."""
        code = (
            "import sys, urllib.request as r\n"
            "try: print(r.urlopen('http://127.0.0.1:8000' + sys.argv[1], timeout=5).read().decode())\n"
            "except OSError as error: print('null')"
        )
        return json.loads(self.tell("python3", "-c", code, path) or "null")

    def retained(self, topic: str) -> Any:
        """Return a retained message."""
        told = self.tell("mosquitto_sub", "-h", "127.0.0.1", "-t", topic, "-C", "1", "-W", "3").strip()
        return json.loads(told) if told else None

    def eventually(self, is_so: Callable[[], object], within_s: float = EVENT_S) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline:
                pytest.fail(f"not so after {within_s:g} s\n{self.journal()[-3000:]}\n{self._log.read_text()[-1500:]}")
            time.sleep(0.5)

    def _leader(self) -> str | None:
        if self._child is None or self._child.poll() is not None:
            return None
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
        return children[0] if children else None
