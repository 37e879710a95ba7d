"""Files of OCI artifacts: the manifest by its digest, and in it the layer that is the file.

As the OCI Distribution Specification (1.1, "Pulling manifests", "Pulling blobs") has it, and for registries that hand
out tokens the answer to their challenge (distribution.github.io, "Token Authentication Specification"). Who asks is
told to the host that hands tokens out, not to the registry: each host gets the credentials named for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from agent.adapters.download.asking import Answer, ask
from agent.adapters.download.location import Location
from agent.adapters.download.policy import allow, origin, redact
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.adapters.download.policy import Policy
    from agent.contract.sources import OciFile
    from agent.deployment.ports import Watch

_ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_TITLE = "org.opencontainers.image.title"
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_NO_RIGHTS = (_UNAUTHORIZED, _FORBIDDEN)
_VISIBLE = re.compile(r"[!-~]+")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOLD = 10
"""Titles of layers that an error tells."""


def registry(file: OciFile, policy: Policy) -> str:
    """Return a registry's address: over https, or over http where that is what the policy has instead."""
    is_plain = "http" in policy.schemes and "https" not in policy.schemes
    return f"{'http' if is_plain else 'https'}://{file.host}"


def locate(file: OciFile, policy: Policy, watch: Watch) -> Location:
    """Return where the layer lies.

    Raises:
        TransientError: a registry cannot answer now.
        StepError: ``download_failed`` or ``forbidden_source``.
    """
    base = f"{registry(file, policy)}/v2/{file.repo}"
    url, accept = f"{base}/manifests/sha256:{file.digest}", {"Accept": _ACCEPT}
    token, judge = {}, file.host
    answer = ask(url, policy, watch, accept)
    challenge = _challenge(answer)
    if challenge:
        token, judge = _token(challenge, url, policy, watch), origin(urlsplit(challenge["realm"]))
        answer = ask(url, policy, watch, {**accept, **token})
    advice = partial(_advice, file, judge)
    layer = _layer(file, _manifest(file, answer, answer.content(advice)))
    return Location(f"{base}/blobs/{layer}", policy.web, token, advice)


def _advice(file: OciFile, judge: str, status: int, _headers: Mapping[str, str]) -> str | None:
    if status in _NO_RIGHTS:
        return _secret(judge)
    if status == _NOT_FOUND:
        return f"it has no such digest: oras resolve {file.host}/{file.repo}:TAG prints the one of a tag"
    return None


def _secret(host: str) -> str:
    return f'name a file with user:password, or with a token, under "{host}" in downloads.token_files'


def _challenge(answer: Answer) -> dict[str, str]:
    """Return what a registry wants asked for a token, nothing where it wants none."""
    kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
    found = dict(_PARAMETER.findall(rest))
    return found if answer.status == _UNAUTHORIZED and kind.lower() == "bearer" and "realm" in found else {}


def _token(challenge: Mapping[str, str], url: str, policy: Policy, watch: Watch) -> dict[str, str]:
    realm = challenge["realm"]
    if url.startswith("https:"):
        allow(realm, policy, schemes={"https"})  # no secret leaves https on the way
    question = urlencode({name: challenge[name] for name in ("service", "scope") if name in challenge})
    answer = ask(f"{realm}{'&' if '?' in realm else '?'}{question}", policy, watch)
    said = answer.json(lambda _status, _headers: _secret(origin(urlsplit(realm))))
    token = said.get("token") or said.get("access_token")
    if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
        raise StepError(ErrorCode.DOWNLOAD_FAILED, f"{redact(realm)} gave no token", "ask those who run the registry")
    return {"Authorization": f"Bearer {token}"}


def _manifest(file: OciFile, answer: Answer, content: bytes) -> dict[str, Any]:
    got = hashlib.sha256(content).hexdigest()
    if got != file.digest:
        raise StepError(
            ErrorCode.CHECKSUM_MISMATCH,
            f"{redact(answer.url)}: the manifest has digest {got}",
            "what the registry sends is not what was asked for; look at it, or at what stands between",
        )
    return answer.json()


def _layer(file: OciFile, manifest: Mapping[str, Any]) -> str:
    """Return the digest of the layer that is the file."""
    layers = _layers(manifest)
    found = {digest for digest, title in layers if file.title in (None, title)}
    if len(found) != 1:
        wanted = f" with the title {file.title}" if file.title else ""
        told = ", ".join(json.dumps(title, ensure_ascii=False) for _, title in layers[:_TOLD]) or "none"
        raise StepError(
            ErrorCode.DOWNLOAD_FAILED,
            f"{file.host}/{file.repo}@sha256:{file.digest[:12]}… has {len(found)} layers{wanted}; its titles: {told}",
            "end the address with the title of one of them: oci://HOST/REPO@sha256:DIGEST/TITLE",
        )
    return found.pop()


def _layers(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return digest and title of each layer; those without a digest are none."""
    listed = manifest.get("layers")
    layers = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    notes = [each["annotations"] if isinstance(each.get("annotations"), dict) else {} for each in layers]
    return [
        (each["digest"], note.get(_TITLE))
        for each, note in zip(layers, notes, strict=True)
        if _DIGEST.fullmatch(str(each.get("digest")))
    ]
