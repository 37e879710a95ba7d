"""A real MLflow tracking server on loopback, in the environment that `make test-mlflow` makes, and its own client.

What a team does is done by MLflow's client, as a process of that environment: log files, register them as a version.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAMS = Path(__file__).parents[2] / ".venv-mlflow" / "bin"
START_S = 120.0
_BEGIN = """
import json, sys
import mlflow
name, files, below = json.loads(sys.argv[1])
client = mlflow.MlflowClient()
try:
    client.create_registered_model(name)
except mlflow.exceptions.MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
"""
_OF_A_RUN = """
with mlflow.start_run() as run:
    for path in files:
        mlflow.log_artifact(path, below)
source, named = f"{run.info.artifact_uri}/{below}", {"run_id": run.info.run_id}
"""
_OF_A_LOGGED_MODEL = """
model_id = mlflow.initialize_logged_model(name=below).model_id
for path in files:
    client.log_model_artifact(model_id, path)
mlflow.finalize_logged_model(model_id, "READY")
source, named = f"models:/{model_id}", {"model_id": model_id}
"""
_END = """
print(client.create_model_version(name, source, **named).version)
"""
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


@dataclass(frozen=True)
class Mlflow:
    """A server that runs, and who may ask it."""

    url: str
    environment: Mapping[str, str]

    def register(self, name: str, *files: Path, below: str = "model", is_logged_model: bool = False) -> str:
        """Log files, make them a version of a model, and return its number.

        Args:
            name: of the model.
            files: what is logged.
            below: the directory of a run that becomes the version.
            is_logged_model: whether they are logged as MLflow 3 logs models, and not with a run.
        """
        told = json.dumps([name, [str(path) for path in files], below])
        script = _BEGIN + (_OF_A_LOGGED_MODEL if is_logged_model else _OF_A_RUN) + _END
        command = [str(PROGRAMS / "python"), "-c", script, told]
        environment = {**os.environ, **self.environment, "MLFLOW_TRACKING_URI": self.url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]


@contextmanager
def mlflow(directory: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Mlflow]:
    """Run ``mlflow server`` on a free port until the block ends; skip the test where MLflow is not installed.

    Args:
        directory: where it keeps everything.
        options: of ``mlflow server`` besides.
        environment: for the server and its clients.
    """
    if not (PROGRAMS / "mlflow").exists():
        pytest.skip("MLflow is not installed: make test-mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {**_ENVIRONMENT, **(environment or {})}
    command = [
        str(PROGRAMS / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination", f"{directory}/artifacts",
        *options,
    ]  # fmt: skip
    log = directory / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=out, stderr=out, cwd=directory, start_new_session=True
        )
        try:
            _await(f"http://127.0.0.1:{port}/health", server, log)
            yield Mlflow(f"http://127.0.0.1:{port}", own)
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while not _answers(url):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
            return True
    except OSError:
        return False
