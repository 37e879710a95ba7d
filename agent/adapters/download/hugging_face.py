"""Files of Hugging Face repositories: one address by the hub's rules, and what its refusals mean. Pure.

The hub answers ``/ORG/REPO/resolve/COMMIT/PATH`` with small files, and for large ones leads to a host of its own for
them, which gets no token. How it names errors, in ``X-Error-Code``, is what its own client goes by
(huggingface_hub, ``utils/_http.py``, ``hf_raise_for_status``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from agent.adapters.download.location import Location
from agent.adapters.download.policy import origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.adapters.download.policy import Policy
    from agent.contract.sources import HuggingFaceFile

_NOT_FOUND = 404
_NO_RIGHTS = (401, 403)


def locate(file: HuggingFaceFile, policy: Policy) -> Location:
    """Return where the hub has a file."""
    url = f"{policy.hugging_face_endpoint}/{file.repo}/resolve/{file.commit}/{quote(file.path)}"
    return Location(url, policy.web, advice=partial(_advice, file, policy.hugging_face_endpoint))


def _advice(file: HuggingFaceFile, endpoint: str, status: int, headers: Mapping[str, str]) -> str | None:
    code, page = headers.get("X-Error-Code"), f"{endpoint}/{file.repo}"
    token = f'name a file with its token under "{origin(urlsplit(endpoint))}" in downloads.token_files'
    if code == "GatedRepo":
        return f"the repository is gated: let an account be accepted at {page}, and {token}"
    if code == "RevisionNotFound":
        return f"the repository has no such commit: compare it with {page}/commits/main"
    if code == "EntryNotFound":
        return f"the commit has no such file: compare the path with {page}/tree/{file.commit}"
    if code == "RepoNotFound" or (status in _NO_RIGHTS and headers.get("X-Error-Message")):
        return f"there is no {file.repo}, or only for an account that may read it: {token}"
    return f"compare {page} with the address" if status == _NOT_FOUND else None
