"""Addresses of files in the registries that teams keep models in, read and judged without asking anybody. Pure.

    hf://ORG/REPO@COMMIT/PATH               a file of a Hugging Face repository; hf://datasets/ORG/… of a data set
    models:/NAME/VERSION[/PATH]             a file of a version in an MLflow registry
    oci://HOST/REPO@sha256:DIGEST[/TITLE]   a file of an OCI artifact

Only what cannot move is taken: branches, tags, aliases and stages are refused with the way to what they mean now. Names
are written as they are, without percent-encoding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.contract.errors import ErrorCode, RefusalError
from agent.contract.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMES = ("https", "http", "file", "s3", "gs", "az", "hf", "models", "oci")
"""All that a device can be allowed to fetch from (``downloads.allowed_schemes``)."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_TEXT = r"[^\x00-\x1f\x7f?#]"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUGGING_FACE = re.compile(
    rf"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/?#\s]*))?/(?P<path>{_TEXT}+)", re.ASCII
)
_MLFLOW = re.compile(rf"models:/(?P<name>[^/:?#\x00-\x1f\x7f]+)/(?P<version>[1-9][0-9]*)(?:/(?P<path>{_TEXT}+))?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
"""Of a repository's name (OCI Distribution Specification 1.1, "Pulling manifests")."""
_OCI = re.compile(
    rf"oci://(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?|\[[0-9a-f:]+\](?::[0-9]+)?)/(?P<repo>{_PART}(?:/{_PART})*)"
    rf"(?P<reference>[@:][^/?#\s]*)?(?:/(?P<title>{_TEXT}+))?"
)
_DIGEST = re.compile(r"@sha256:(?P<hex>[0-9a-f]{64})")
_UNMOVED = "downloads name what cannot move"


@dataclass(frozen=True)
class HuggingFaceFile:
    """A file of one commit of a repository; ``repo`` is ``ORG/REPO``, below ``datasets/`` for a data set."""

    repo: str
    commit: str
    path: str


@dataclass(frozen=True)
class MlflowFile:
    """A file of one version of a registered model; without ``path`` the version itself is the file."""

    name: str
    version: str
    path: str | None


@dataclass(frozen=True)
class OciFile:
    """A layer of the artifact whose manifest has a digest; without ``title`` it has only one."""

    host: str
    repo: str
    digest: str
    title: str | None


RegistryFile = HuggingFaceFile | MlflowFile | OciFile


def parse(url: str) -> RegistryFile | None:
    """Return what an address names, None where it is no registry's.

    Raises:
        RefusalError: ``forbidden_source``: it is malformed, or what it names could move.
    """
    scheme = _SCHEME.match(url)
    reader = _READERS.get(scheme[1].lower()) if scheme else None
    return reader(url) if reader else None


def _hugging_face(url: str) -> HuggingFaceFile:
    found = _HUGGING_FACE.fullmatch(url)
    if found is None or not _is_plain(found["path"]):
        raise _malformed(url, "hf://ORG/REPO@COMMIT/PATH")
    revision, repo = found["revision"], (found["kind"] or "") + found["repo"]
    if not _COMMIT.fullmatch(revision or ""):
        told = f"revision {revision!r} of {redacted(url)} is" if revision else f"{redacted(url)} names"
        name = revision if re.fullmatch(r"[\w.-]+", revision or "") else "HEAD"
        raise RefusalError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"{told} no commit of 40 hexadecimal digits; branches and tags move, {_UNMOVED}",
            f"pin it: git ls-remote https://huggingface.co/{repo} {name} prints the commit",
        )
    return HuggingFaceFile(repo, str(revision), found["path"])


def _mlflow(url: str) -> MlflowFile:
    found = _MLFLOW.fullmatch(url)
    if found is None or not _is_plain(found["path"]):
        raise RefusalError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"{redacted(url)} is not models:/NAME/VERSION or models:/NAME/VERSION/PATH with a number as the version; "
            f"aliases, stages and latest move, {_UNMOVED}",
            "name the version; /api/2.0/mlflow/registered-models/alias?name=NAME&alias=ALIAS of the tracking server "
            "tells what an alias means now",
        )
    return MlflowFile(found["name"], found["version"], found["path"])


def _oci(url: str) -> OciFile:
    found = _OCI.fullmatch(url)
    if found is None or not _is_plain(found["title"]):
        raise _malformed(url, "oci://HOST/REPO@sha256:DIGEST or oci://HOST/REPO@sha256:DIGEST/TITLE")
    digest = _DIGEST.fullmatch(found["reference"] or "")
    if digest is None:
        raise RefusalError(
            ErrorCode.FORBIDDEN_SOURCE,
            f"{redacted(url)} names no digest of 64 hexadecimal digits; tags move, {_UNMOVED}",
            f"pin it: oras resolve {found['host']}/{found['repo']}:TAG prints the digest",
        )
    return OciFile(found["host"], found["repo"], digest["hex"], found["title"])


_READERS: dict[str, Callable[[str], RegistryFile]] = {"hf": _hugging_face, "models": _mlflow, "oci": _oci}


def _is_plain(path: str | None) -> bool:
    """Return whether a path leads straight down."""
    return path is None or not {"", ".", ".."} & set(path.split("/"))


def _malformed(url: str, expected: str) -> RefusalError:
    return RefusalError(
        ErrorCode.FORBIDDEN_SOURCE,
        f"{redacted(url)} is not {expected}; names are written as they are, without ? and #",
        "write the address so",
    )
