"""schemathesis against a real server: requests made up from our own OpenAPI document, replies held against it.

``python -m tests.e2e.harness.fuzz`` is the long run; the tests play a short one. What a body means (names, shapes, the
number of elements) is beyond a schema, so that most made-up bodies are refused: a valid one is given as an example, and
the generator changes it bit by bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Served
from tests.e2e.harness.releases import build_release

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
MODEL, VERSION = "kanji", "1"
ADMIN = "admin-0123456789abcdef"
# A valid body that a schema describes may still not fit the model, so acceptance is no promise of the document.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance,ignored_auth"
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit status, 0 for no failure at all, and what it printed."""

    status: int
    text: str


@contextmanager
def kanji_server(folder: Path) -> Iterator[int]:
    """Yield the port of a server with the demo's model in 4 bits; the repository takes ``ADMIN``."""
    token_file, path = folder / "admins", folder / "control.sock"
    token_file.write_text(ADMIN)
    token_file.chmod(0o600)
    release = build_release(ROOT / "deploy" / "demo" / "kanji", folder, VERSION, "nf4")
    http, control = listen_tcp("127.0.0.1", 0), listen_unix(path)
    options = ("--device", "cpu", "--admin-token-file", str(token_file), "--store", str(folder))
    server = ServerProcess(http, control, path, options=options)
    try:
        server.restore({MODEL: Served(MODEL, release)})
        yield int(http.getsockname()[1])
        answers = ask(int(http.getsockname()[1]), "/v2/health/ready")
        assert answers == {"live": True, "ready": True}
    finally:
        server.stop(drain_s=1.0)
        http.close()
        control.close()


def ask(port: int, path: str) -> Any:
    """Return the JSON answer of a GET."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
        return json.load(reply)


def schema_for(port: int) -> dict[str, Any]:
    """Return the server's document, with the model that it has among the values, and a body that it answers."""
    schema: dict[str, Any] = ask(port, "/openapi.json")
    values = {"model": [MODEL, "nobody"], "version": [VERSION, "99"]}
    body = example(ask(port, f"/v2/models/{MODEL}"))
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in values:
                    # The repository's load and unload shall not take the model away from the other operations.
                    known = values[parameter["name"]] if "repository" not in path else ["nobody"]
                    parameter["schema"] = {"enum": known}
            if path.endswith("/infer"):
                operation["requestBody"]["content"]["application/json"]["example"] = body
    return schema


def example(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a request that a model answers."""
    inputs = []
    for spec in metadata["inputs"]:
        shape = [max(size, 1) for size in spec["shape"]]
        elements = 1
        for size in shape:
            elements *= size
        inputs.append({"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": [0] * elements})
    return {"id": "1", "inputs": inputs, "outputs": [{"name": metadata["outputs"][0]["name"]}]}


def fuzz(port: int, folder: Path, *, examples: int, leave_out: str = "", seed: int = 1) -> Outcome:
    """Try ``examples`` requests and every corner of the schema for each operation whose path has no ``leave_out``."""
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(schema_for(port)))
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(schema), "--url", f"http://127.0.0.1:{port}",
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(examples), "--seed", str(seed),
        "--header", f"Authorization: Bearer {ADMIN}", "--request-timeout", "30", "--no-color", "--warnings", "off",
        "--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure",
        *(("--exclude-path-regex", leave_out) if leave_out else ()),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout + done.stderr)


def main() -> None:
    """Play the long run and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, kanji_server(Path(name)) as port:
        outcome = fuzz(port, Path(name), examples=options.examples, seed=options.seed)
    print(outcome.text)  # noqa: T201 - what it is for
    sys.exit(outcome.status)


if __name__ == "__main__":
    main()
