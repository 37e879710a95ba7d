"""Files of versions in an MLflow registry: one question where the version lies, and then that place.

    GET /api/2.0/mlflow/model-versions/get-download-uri     the version's location
    GET /api/2.0/mlflow-artifacts/artifacts/PATH            what the tracking server hands on itself

as MLflow's REST API documents them. A location in an object store is fetched from there, with the device's own
credentials. One on the tracking server's disk, or in a store that is not known here, is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from agent.adapters.download.asking import ask
from agent.adapters.download.location import Location
from agent.adapters.download.policy import STORES, WEB, origin, redact
from agent.contract.errors import ErrorCode
from agent.deployment.ports import StepError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.adapters.download.location import Advice
    from agent.adapters.download.policy import Policy
    from agent.contract.sources import MlflowFile
    from agent.deployment.ports import Watch

_PROXIED = "mlflow-artifacts"
_AZURE = "wasbs"
_REDIRECTS = range(300, 400)
_NO_RIGHTS, _BAD_REQUEST, _NOT_FOUND = (401, 403), 400, 404


def tracking_uri(policy: Policy) -> str:
    """Return where the tracking server is.

    Raises:
        StepError: ``forbidden_source``: this device knows none.
    """
    if policy.mlflow_tracking_uri is None:
        raise StepError(
            ErrorCode.FORBIDDEN_SOURCE,
            "models:/ addresses need an MLflow tracking server, and this device knows none",
            "name it in downloads.mlflow_tracking_uri",
        )
    return policy.mlflow_tracking_uri


def locate(file: MlflowFile, policy: Policy, watch: Watch) -> Location | str:
    """Return where a file lies: an address to ask, or one of an object store (``s3://…``) that has to be signed.

    Raises:
        TransientError: the tracking server cannot answer now.
        StepError: ``download_failed`` or ``forbidden_source``.
    """
    server = tracking_uri(policy)
    question = urlencode({"name": file.name, "version": file.version})
    answer = ask(f"{server}/api/2.0/mlflow/model-versions/get-download-uri?{question}", policy, watch)
    said = answer.json(_registry_advice(file, server, answer.body))
    uri = said.get("artifact_uri")
    parts = urlsplit(uri if isinstance(uri, str) else "")
    below = f"/{file.path}" if file.path else ""
    path = parts.path.rstrip("/") + below
    if parts.scheme == _PROXIED:
        base = f"{urlsplit(server).scheme}://{parts.netloc}" if parts.netloc else server
        return Location(
            f"{base}/api/2.0/mlflow-artifacts/artifacts{quote(path)}", policy.web, advice=_advice(file, base)
        )
    if parts.scheme in WEB:
        base = f"{parts.scheme}://{parts.netloc}"
        return Location(f"{base}{quote(path, safe='/%')}", policy.web, advice=_advice(file, base))
    if parts.scheme in STORES:
        return f"{parts.scheme}://{parts.netloc}{quote(path)}"
    if parts.scheme == _AZURE:  # wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PATH
        return f"az://{parts.netloc.partition('@')[0]}{quote(path)}"
    raise _out_of_reach(file, str(uri))


def _out_of_reach(file: MlflowFile, uri: str) -> StepError:
    place = redact(uri) if urlsplit(uri).scheme not in ("", "file") else "the tracking server's own disk"
    return StepError(
        ErrorCode.DOWNLOAD_FAILED,
        f"version {file.version} of {file.name} lies in {place}, which cannot be fetched from",
        "log it to an experiment whose artifacts the tracking server hands on (mlflow server --artifacts-destination), "
        "or that lie in s3, gs or wasbs",
    )


def _registry_advice(file: MlflowFile, server: str, body: bytes) -> Advice:
    try:
        code = json.loads(body).get("error_code")
    except (ValueError, AttributeError, RecursionError):
        code = None

    def advice(status: int, _headers: Mapping[str, str]) -> str | None:
        if status in _NO_RIGHTS:
            return _token(server)
        if code == "RESOURCE_DOES_NOT_EXIST":
            return f"the registry has no version {file.version} of {file.name}: compare them with {server}"
        if status == _NOT_FOUND or status in _REDIRECTS:
            return (
                "let downloads.mlflow_tracking_uri be where MLflow's REST API answers, not a page or a login before it"
            )
        return None

    return advice


def _advice(file: MlflowFile, base: str) -> Advice:
    def advice(status: int, _headers: Mapping[str, str]) -> str | None:
        if status in _NO_RIGHTS:
            return _token(base)
        if status == _NOT_FOUND and file.path:
            return f"version {file.version} of {file.name} has no such file: compare the path with those that it has"
        if status in (_BAD_REQUEST, _NOT_FOUND):
            return f"name a file: {'what is named' if file.path else 'the version'} may be a directory"
        return None

    return advice


def _token(base: str) -> str:
    return f'name a file with a token, or with user:password, under "{origin(urlsplit(base))}" in downloads.token_files'
