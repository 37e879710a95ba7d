"""Bearer tokens and passwords: one file a host, read at each use, said to nobody else.

A token goes to exactly the host, and port, that it is configured for, so a redirect takes none along. It goes over
https; over http only to a host that `downloads.allowed_hosts` names, and never after a redirect left https. Nothing
here puts a token into an error.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING

from agent.adapters.download.policy import origin
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError
from agent.tokens import how_to_keep

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from agent.adapters.download.policy import Policy

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""What RFC 6750 (2.1) lets a bearer token be made of: no colon, so that ``user:password`` is never taken for one."""
_PASSWORD = re.compile(r"[^:\x00-\x20\x7f]+:[^\x00-\x1f\x7f]+")
"""What RFC 7617 (2) lets a user and a password be made of."""
_OPEN = 0o027
"""Rights that nobody may have on a secret: the group's to write, and all of the others'."""
_MOST_BYTES = 64 * 1024
_SETTING = "downloads.token_files"


def authorization(parts: SplitResult, policy: Policy, *, is_downgraded: bool) -> dict[str, str]:
    """Return the header that a request to ``parts`` may carry, empty if none.

    Args:
        parts: of the URL that is asked now.
        policy: where the tokens lie.
        is_downgraded: whether redirects led here from https.

    Raises:
        StepError: ``download_failed``; the file cannot be used, with its name and the reason.
    """
    file = policy.token_files.get(origin(parts))
    if file is None:
        return {}
    if parts.scheme != "https" and (is_downgraded or parts.hostname not in policy.hosts):
        return {}
    return {"Authorization": credentials(file)}


def credentials(file: str) -> str:
    """Return what a file of `downloads.token_files` makes the header ``Authorization`` say.

    Raises:
        StepError: ``download_failed``; the file cannot be used, with its name and the reason.
    """
    token = read_secret(file, _SETTING).strip()
    if _TOKEN.fullmatch(token):
        return f"Bearer {token}"
    if _PASSWORD.fullmatch(token):
        return f"Basic {base64.b64encode(token.encode()).decode()}"
    if not token:
        raise _unusable(file, _SETTING, "it is empty, expected one bearer token or user:password")
    raise _unusable(file, _SETTING, "it holds neither one bearer token nor user:password, and nothing else")


def read_secret(file: str, setting: str) -> str:
    """Return the content of a file that only its owner, and its group for reading, may open.

    Raises:
        StepError: ``download_failed``, naming the file and the setting.
    """
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123 - the descriptor's mode is looked at, not the path's
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            if mode & _OPEN:
                raise _unusable(
                    file, setting, f"its mode is {mode:04o}, at most 0640 keeps it secret", how_to_keep(file)
                )
            return opened.read(_MOST_BYTES)
    except UnicodeDecodeError:
        raise _unusable(file, setting, "it is not text") from None
    except PermissionError as error:
        raise _unusable(file, setting, str(error.strerror), how_to_keep(file)) from None
    except FileNotFoundError as error:
        make = f"write it there: (umask 027; cat > {file}), and then {how_to_keep(file)}"
        raise _unusable(file, setting, str(error.strerror), make) from None
    except OSError as error:
        raise _unusable(file, setting, str(error.strerror)) from None


def _unusable(file: str, setting: str, why: str, hint: str | None = None) -> StepError:
    told = hint or f"mend it, or change {setting}"
    return StepError(ErrorCode.DOWNLOAD_FAILED, f"{file}: {why}", told, retryable=True)
