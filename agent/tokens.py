"""Bearer tokens in a file (RFC 6750), one a line, so that an old and a new one can overlap; ``#`` begins a remark.

Only digests are kept and compared, all of them and in constant time: how long an answer takes tells nothing about a
token, and no traceback shows one.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import re
import stat
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = structlog.get_logger("access")
MIN_CHARACTERS = 16
LOOK_AGAIN_S = 1.0
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class TokenFileError(ValueError):
    """The file cannot be used; the text names it and says why, and never what is in it."""


class Tokens:
    """The tokens of one file.

    Args:
        digests: SHA-256 of each.
    """

    def __init__(self, digests: frozenset[bytes] = frozenset()) -> None:
        self._digests = digests

    def accept(self, token: bytes) -> bool:
        """Return whether ``token`` is one of them."""
        given = hashlib.sha256(token).digest()
        return sum([hmac.compare_digest(given, digest) for digest in self._digests]) > 0


def read_tokens(path: Path) -> Tokens:
    """Read a file that only its owner, and whoever its group is for, may read.

    Raises:
        TokenFileError: it is missing, open to others, holds no token, or one that is too short or cannot be sent.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = file.read(65_536).decode("ascii")
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror or error}{_next_step(path, error)}") from None
    except UnicodeDecodeError:
        raise TokenFileError(f"{path}: holds something that is no token") from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise TokenFileError(f"{path}: its mode is {mode:04o}, others may not read it; {how_to_keep(path)}")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    tokens = [line for line in lines if line]
    if not tokens:
        raise TokenFileError(f"{path}: holds no token; make one: openssl rand -hex 32")
    for number, token in enumerate(tokens, 1):
        if len(token) < MIN_CHARACTERS or not _TOKEN.fullmatch(token):
            raise TokenFileError(
                f"{path}: token {number} has to be {MIN_CHARACTERS} or more of A-Z a-z 0-9 . _ ~ + / -; "
                "make one: openssl rand -hex 32"
            )
    return Tokens(frozenset(hashlib.sha256(token.encode()).digest() for token in tokens))


def _next_step(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"; make one: (umask 027; openssl rand -hex 32 > {path}), and then {how_to_keep(path)}"
    return f"; {how_to_keep(path)}" if isinstance(error, PermissionError) else ""


def how_to_keep(path: Path | str) -> str:
    """Return the command after which a secret can be read by this process, by its group at least, and not by others."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a setting may be a plain string
    except OSError:
        is_ours = False
    else:
        is_ours = found.st_uid == os.geteuid() or found.st_gid in {os.getegid(), *os.getgroups()}
    return f"{'' if is_ours else f'chown root:{_group()} {path} && '}chmod 0640 {path}"


def _group() -> str:
    number = os.getegid()
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


class TokenFile:
    """The tokens of a file as it is now.

    A file that cannot be used any more leaves the last good tokens in force, since renewals are not always atomic;
    one that never could be used accepts nobody.

    Args:
        path: of the file.
        clock: seconds, monotonic.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._seen = self._fingerprint()
        self._tokens = Tokens()
        self._read()

    def accepts(self, token: bytes) -> bool:
        """Return whether ``token`` is in the file."""
        now = self._clock()
        if now - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = now
            found = self._fingerprint()
            if found != self._seen:
                self._seen = found
                self._read()
        return self._tokens.accept(token)

    def _read(self) -> None:
        try:
            self._tokens = read_tokens(self._path)
        except TokenFileError as error:
            log.error("tokens_unusable", error=str(error))  # noqa: TRY400 - a sentence is enough
        else:
            log.info("tokens_read", file=str(self._path))

    def _fingerprint(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode
