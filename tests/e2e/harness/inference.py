"""A client of the inference server: real held-out images in, logits out, over HTTP with the standard library."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Floats = npt.NDArray[np.float32]
TIMEOUT_S = 60.0
INPUT = "input"


class Images:
    """The evaluation set: inputs ``(rows, 1, 64, 64) float32`` and labels ``(rows,) int64``."""

    def __init__(self, path: Path, rows: int) -> None:
        tensors = load_file(path)
        self.inputs: Floats = tensors["inputs"][:rows].astype(np.float32)
        self.labels: npt.NDArray[np.int64] = tensors["labels"][:rows]

    def accuracy(self, url: str, model: str) -> float:
        """Return the share of images that ``model`` names rightly over HTTP."""
        return float((ask(url, model, self.inputs).argmax(axis=1) == self.labels).mean())


def ask(url: str, model: str, inputs: Floats) -> Floats:
    """Return the logits ``(rows, classes)`` for ``inputs``, both as binary tensor data.

    Raises:
        urllib.error.HTTPError: for every status but 200.
    """
    with _post(url, model, inputs) as response:
        body = response.read()
        length = int(response.headers["Inference-Header-Content-Length"])
    output = json.loads(body[:length])["outputs"][0]
    logits: Floats = np.frombuffer(body[length:], np.float32).reshape(output["shape"])
    return logits


@contextlib.contextmanager
def load(url: str, model: str, image: Floats, threads: int = 2) -> Iterator[Counter[str]]:
    """Ask for one image after another from some threads while the block runs.

    Yields the counter of answers by status, or by error where there was none; it is filled when the block ends.
    """
    stop, statuses = threading.Event(), Counter[str]()

    def ask_on() -> Counter[str]:
        counted = Counter[str]()
        while not stop.is_set():
            counted[_status(url, model, image)] += 1
        return counted

    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        counting = [pool.submit(ask_on) for _ in range(threads)]
        try:
            yield statuses
        finally:
            stop.set()
        for counted in counting:
            statuses.update(counted.result())


def _status(url: str, model: str, image: Floats) -> str:
    try:
        with _post(url, model, image) as response:
            response.read()
            return str(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)
    except OSError as error:
        return repr(error)


def _post(url: str, model: str, inputs: Floats) -> Any:
    raw = np.ascontiguousarray(inputs).tobytes()
    tensor = {"name": INPUT, "shape": inputs.shape, "datatype": "FP32"}
    header = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{url}/models/{model}/infer", text + raw, headers)  # noqa: S310 - loopback http
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - as above
