"""From an address as a command gives it to where the file lies now.

Each try asks anew, so that none outlives a signature.
Web addresses lie where they say. Object stores are signed for. Registries are asked by their own rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.adapters.download import hugging_face, mlflow, oci, stores
from agent.adapters.download.location import Location
from agent.adapters.download.policy import STORES, WEB, allow
from agent.contract import sources
from agent.contract.errors import RefusalError
from agent.contract.sources import HuggingFaceFile, MlflowFile, OciFile
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from agent.adapters.download.policy import Policy
    from agent.contract.sources import RegistryFile
    from agent.deployment.ports import Watch


def registry_file(url: str) -> RegistryFile | None:
    """Return what an address names in a registry, None where it is no registry's.

    Raises:
        StepError: ``forbidden_source``: it is malformed, or what it names could move.
    """
    try:
        return sources.parse(url)
    except RefusalError as refusal:
        raise StepError(refusal.code, refusal.detail, refusal.hint) from None


def first_asked(url: str, policy: Policy) -> SplitResult | None:
    """Return the web address that would be asked first, judged; None where that shows only later, or nobody is asked.

    Raises:
        StepError: ``forbidden_source``.
    """
    parts = allow(url, policy)
    if parts.scheme in WEB:
        return parts
    file = registry_file(url)
    if isinstance(file, HuggingFaceFile):
        return allow(policy.hugging_face_endpoint, policy, schemes=policy.web)
    if isinstance(file, MlflowFile):
        return allow(mlflow.tracking_uri(policy), policy, schemes=policy.web)
    if isinstance(file, OciFile):
        return allow(oci.registry(file, policy), policy, schemes=policy.web)
    return None


def locate(url: str, policy: Policy, watch: Watch) -> Location:
    """Return where a file lies, other than one of this machine.

    Raises:
        TransientError: a registry cannot answer now.
        StepError: ``forbidden_source`` or ``download_failed``.
    """
    file = registry_file(url)
    if isinstance(file, HuggingFaceFile):
        return hugging_face.locate(file, policy)
    if isinstance(file, OciFile):
        return oci.locate(file, policy, watch)
    if isinstance(file, MlflowFile):
        found = mlflow.locate(file, policy, watch)
        if isinstance(found, Location):
            return found
        url = found
    parts = allow(url, policy)
    if parts.scheme in STORES:
        return Location(stores.signed(parts, policy, watch), policy.web)
    return Location(url, policy.schemes & WEB)
