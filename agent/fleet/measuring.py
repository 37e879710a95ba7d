"""``--measure``: digest and size of what lies at an address, fetched and hashed here by the code that devices use.

It pins what is served there now: the operator believes whoever serves it once, and no device does again. What was built
here is better signed, or hashed, where it was built.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from agent.adapters.download.downloader import Downloader
from agent.adapters.download.policy import Policy, redact
from agent.deployment.ports import StepError
from agent.deployment.runner import WorkWatch
from agent.fleet.keys import describe_file
from agent.fleet.target import fail

JsonObject = dict[str, Any]
SCHEMES = frozenset({"file", "http", "https"})
OPTION = click.option("--measure", is_flag=True, help="Fetch what has no sha256, on this machine, and fill that in.")


def measured(fields: Any) -> Any:
    """Return the fields of a ``deploy`` with ``sha256`` and ``size`` of its artifact and of its gate's data set.

    What says its ``sha256`` stays as it is, and so does what is no address: a device says what is wrong with that.
    Ends the program where an address cannot be fetched.
    """
    if not isinstance(fields, dict):
        return fields
    rules = {"gate": measured, "artifact": _filled, "dataset": _filled}
    return {name: rules[name](value) if name in rules else value for name, value in fields.items()}


def _filled(file: Any) -> Any:
    is_wanting = isinstance(file, dict) and "sha256" not in file and isinstance(file.get("url"), str)
    return {**file, **_measure(file["url"])} if is_wanting else file


def _measure(url: str) -> JsonObject:
    # Somebody at a keyboard names the address, not the network: hosts that a device must not be led to are allowed.
    host = urlsplit(url).hostname
    downloader = Downloader(Policy(SCHEMES, frozenset({host} if host else ())))
    with tempfile.TemporaryDirectory(prefix="nibblectl-") as folder:
        path = Path(folder) / "file"
        try:
            downloader.fetch(url, path, None, WorkWatch(lambda _done, _total, _unit: None))
        except StepError as error:
            fail(f"--measure: {error.detail}\n  it fetches from {', '.join(sorted(SCHEMES))}; else give sha256", 1)
        told = describe_file(path, url)
    click.echo(f"nibblectl: {redact(url)}: {told['size']} bytes, sha256 {told['sha256']}", err=True)
    return {"sha256": told["sha256"], "size": told["size"]}
