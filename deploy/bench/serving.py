"""A server process of its own, with one model, asked for one full batch: how much memory it took at most."""

from __future__ import annotations

import json
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import architectures
from agent.adapters.server import ServerProcess
from agent.adapters.sockets import listen_tcp, listen_unix
from agent.deployment.models import Release

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCHES = 3
"""The second one of a size finds what libraries set up at the first."""


@dataclass(frozen=True)
class Served:
    """Resident memory of the server: before its first model, and the most from then on."""

    base_bytes: int
    peak_bytes: int


def peak(artifact: Path, model_type: str, options: Mapping[str, Any], rows: int) -> Served:
    """Serve ``artifact`` and answer batches of ``rows``; return what the process took.

    Raises:
        OSError: the kernel does not let the high-water mark be reset.
    """
    release = Release(
        "bench", "1", "0" * 64, model_type, "nf4-dq", str(artifact), "", 0, 0, 1.0, None, None, None
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="nibbled-bench-") as folder:
        control = Path(folder) / "control.sock"
        http, unix = listen_tcp("127.0.0.1", 0), listen_unix(control)
        server = ServerProcess(http, unix, control, options=("--device", "cpu", "--threads", "1"))
        try:
            server.restore({})
            server.load("warm", release)  # the imports of the first load belong to the runtime, not to a model
            server.undeploy("warm")
            base = _status(server.pid, "VmRSS")
            Path(f"/proc/{server.pid}/clear_refs").write_text("5", encoding="ascii")
            server.load("bench", release)
            server.activate("bench", release)
            body, length = _request(model_type, options, rows)
            for _batch in range(BATCHES):
                _infer(f"http://127.0.0.1:{http.getsockname()[1]}", body, length)
            return Served(base, _status(server.pid, "VmHWM"))
        finally:
            server.stop(drain_s=1.0)
            http.close()
            unix.close()


def _request(model_type: str, options: Mapping[str, Any], rows: int) -> tuple[bytes, int]:
    """Return a request in the binary form of the protocol, and the length of its JSON part."""
    tensors = architectures.synthetic_inputs(model_type, options, rows, 0)
    specs = {spec.name: spec for spec in architectures.input_specs(model_type, options)}
    raw = [tensor.numpy().tobytes() for tensor in tensors.values()]
    inputs = [
        {
            "name": name,
            "datatype": specs[name].datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for (name, tensor), data in zip(tensors.items(), raw, strict=True)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(raw), len(head)


def _infer(url: str, body: bytes, length: int) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{url}/v2/models/bench/infer", body, {"Inference-Header-Content-Length": str(length)}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310 - as above
        response.read()


def _status(pid: int | None, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no {field}")
