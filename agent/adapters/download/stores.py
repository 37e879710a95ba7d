"""Files in object stores, ``s3://``, ``gs://`` and ``az://``: an address with a signature, and then as any other.

The library of the extra ``cloud`` only signs, in a child that ends at once: it would cost the supervisor 12 MiB for
good. The bytes come over the same connection as all others, so that hosts, sizes, disk, pace and resuming follow the
same rules. Each try signs anew, so that no pause outlives a signature.

Credentials come from the file that `downloads.store_files` names for the bucket and from nowhere else: no variable of
the environment, and no metadata service, which is a link-local address.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from agent.adapters.download.policy import allow, redact
from agent.adapters.download.tokens import read_secret
from agent.contract.errors import ErrorCode
from agent.contract.toml import loads
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from agent.adapters.download.policy import Policy
    from agent.deployment.ports import Watch

SIGNING_S = 30.0
"""What a child may take: it talks to nobody."""
_LOOK_S = 0.1
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")


def signed(parts: SplitResult, policy: Policy, watch: Watch) -> str:
    """Return an https address, or http where that is allowed, of an object for the next minutes.

    Raises:
        StepError: ``download_failed``: no credentials, no library, or the library refuses them.
    """
    bucket = f"{parts.scheme}://{parts.hostname}"
    file = policy.store_files.get(bucket)
    if file is None:
        raise StepError(
            ErrorCode.DOWNLOAD_FAILED,
            f"no credentials for {bucket}",
            f'name a file with them under "{bucket}" in downloads.store_files',
        )
    config = _config(file)
    answer = _ask({"url": redact(parts.geturl()), "config": config}, watch)
    if "error" in answer:
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{bucket}: {answer['error']}", answer.get("hint", f"mend {file}"))
    url = str(answer["url"])
    allow(url, policy, schemes=policy.web)
    return url


def _config(file: str) -> dict[str, str]:
    try:
        found: object = loads(read_secret(file, "downloads.store_files"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise StepError(
            ErrorCode.DOWNLOAD_FAILED, f"{file}: not TOML with texts alone", 'write lines such as access_key_id = "…"'
        )
    return found


def _ask(question: dict[str, Any], watch: Watch) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-m", "agent.adapters.download.presign"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        told: bytes | None = json.dumps(question).encode()
        until = time.monotonic() + SIGNING_S
        while time.monotonic() < until:
            watch.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = child.communicate(told, timeout=_LOOK_S)
                answer: dict[str, Any] = json.loads(out)
                return answer
            told = None  # is on its way already
    except ValueError:
        pass  # it died without a word
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
    raise StepError(
        ErrorCode.DOWNLOAD_FAILED, f"signing had no result within {SIGNING_S:g} s", retryable=True, is_transient=True
    )
