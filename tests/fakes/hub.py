"""A stand-in for the Hugging Face hub and the host that it keeps large files on, both on loopback.

What it answers is what the hub's own client goes by (huggingface_hub, ``file_download.py`` and ``utils/_http.py``):
small files from the hub after a redirect within it, large ones from another host under an address that is signed;
``X-Repo-Commit``, ``X-Linked-Etag`` and ``X-Linked-Size``; errors by ``X-Error-Code``. A test downloads from it with
that client.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.fakes.files import FileServer, serve
from tests.fakes.web import Answered, Asked, Web, web

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "X-Amz-Signature=canary-signature"
_RESOLVE = re.compile(r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<path>.+)")


@dataclass
class Hub:
    """One repository.

    Attributes:
        site: the hub.
        storage: where its large file lies; what it was asked, and how it misbehaves.
        repo, commit: which one, and its only commit, which ``main`` is.
        large: path of the large file; ``small``: paths and contents of the others.
        token: who may read it, None for anybody.
        is_gated: whether those without the token are told that they have to ask for it.
    """

    site: Web
    storage: FileServer
    repo: str = "acme/kanji"
    commit: str = COMMIT
    large: str = "weights/model.safetensors"
    small: dict[str, bytes] = field(default_factory=lambda: {"config.json": b'{"model_type": "kanji"}'})
    token: str | None = None
    is_gated: bool = False

    def answer(self, asked: Asked) -> Answered:
        """Return what the hub says to a request."""
        path = unquote(asked.url.path)
        cached = _CACHED.fullmatch(path)
        if cached is not None:
            content = self.small[cached["path"]]
            return Answered(200, {"ETag": f'"{_git(content)}"', "X-Repo-Commit": self.commit}, content)
        found = _RESOLVE.fullmatch(path)
        if found is None or found["repo"] != self.repo:
            return _error(401, "RepoNotFound", "Repository not found")
        if self.token is not None and asked.headers.get("Authorization") != f"Bearer {self.token}":
            code = "GatedRepo" if self.is_gated else "RepoNotFound"
            return _error(401, code, f"Access to model {self.repo} is restricted.")
        if found["revision"] not in ("main", self.commit):
            return _error(404, "RevisionNotFound", f"Invalid rev id: {found['revision']}")
        return self._resolve(found["path"])

    def _resolve(self, path: str) -> Answered:
        head = {"X-Repo-Commit": self.commit}
        if path in self.small:
            content = self.small[path]
            told = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_git(content)}"'}
            return Answered(307, {**head, **told, "Location": f"/api/resolve-cache/models/{path}"})
        if path != self.large:
            return _error(404, "EntryNotFound", "Entry not found")
        content = self.storage.content
        digest = hashlib.sha256(content).hexdigest()
        place = f"http://{urlsplit(self.storage.url).netloc}/repos/{digest}?{SIGNATURE}"
        told = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        return Answered(302, {**head, **told, "Location": place})


@contextmanager
def hub(content: bytes) -> Iterator[Hub]:
    """Serve a repository whose large file is ``content``, until the block ends."""
    with serve(content) as storage, web(lambda _asked: Answered(503)) as site:
        storage.etag = f'"{hashlib.sha256(content).hexdigest()}"'
        found = Hub(site, storage)
        site.answer = found.answer
        yield found


def _git(content: bytes) -> str:
    """Return a tag for a file that lies in git itself; the hub's is the blob's id."""
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _error(status: int, code: str, message: str) -> Answered:
    return Answered(status, {"X-Error-Code": code, "X-Error-Message": message}, message.encode())
