"""LitServe, as its manual writes a server; ``lit.py PORT ROWS`` joins up to that many requests.

No ``from __future__ import annotations`` here: LitServe hands the type of ``request`` to FastAPI as it stands.
"""

import sys
from typing import Any

import litserve
import numpy as np
import torch

from deploy.bench.beside.network import SHAPE, build


class Api(litserve.LitAPI):
    """One module."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it by name
        """Build the module in the worker."""
        self.module = build()

    def decode_request(self, request: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Return one image."""
        return np.asarray(request["data"], dtype=np.float32).reshape(SHAPE)

    def batch(self, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Join images."""
        return np.stack(inputs)

    def unbatch(self, output: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Return the rows."""
        return list(output)

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Compute one image or a batch."""
        tensor = torch.from_numpy(x)
        with torch.inference_mode():
            answer: np.ndarray[Any, Any] = self.module(tensor if x.ndim == 1 + len(SHAPE) else tensor[None]).numpy()
        return answer

    def encode_response(self, output: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Return the scores."""
        return {"output": output.ravel().tolist()}


if __name__ == "__main__":
    rows = int(sys.argv[2])
    server = litserve.LitServer(
        Api(max_batch_size=rows, batch_timeout=0.002 if rows > 1 else 0.0), accelerator="cpu", timeout=30
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        num_api_servers=1,
        access_log=False,
    )
