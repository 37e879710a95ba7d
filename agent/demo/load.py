"""A client that never stops asking: proves that switching drops nothing."""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import urllib3

if TYPE_CHECKING:
    from agent.demo.files import Images


class InferenceClient:
    """Speaks the Open Inference Protocol to one model over one keep-alive connection."""

    def __init__(self, base_url: str, model: str) -> None:
        self._url = f"{base_url}/models/{model}/infer"
        self._pool = urllib3.PoolManager(maxsize=1, retries=False, timeout=30.0)

    def infer(self, shape: tuple[int, ...], pixels: tuple[float, ...]) -> tuple[int, dict[str, Any]]:
        """Send one image; return the HTTP status and the parsed answer."""
        tensor = {"name": "input", "datatype": "FP32", "shape": shape, "data": pixels}
        response = self._pool.request("POST", self._url, body=json.dumps({"inputs": [tensor]}).encode())
        return response.status, json.loads(response.data)


def top(answer: dict[str, Any]) -> int:
    """Return the index of the largest logit."""
    logits = answer["outputs"][0]["data"]
    return max(range(len(logits)), key=logits.__getitem__)


class Load:
    """Clients that ask one image after another while the block runs.

    Attributes:
        requests, failures: what was sent, and what did not come back as 200.
        right: answers that named the character shown.
        methods: the quantization methods that answered.
        latencies_ms: client-side time of every request that was answered.
    """

    def __init__(self, base_url: str, model: str, images: Images, clients: int = 2) -> None:
        self._images = images
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(InferenceClient(base_url, model), offset), daemon=True)
            for offset in range(clients)
        ]
        self.requests = self.failures = self.right = 0
        self.methods: set[str] = set()
        self.latencies_ms: list[float] = []

    def __enter__(self) -> Load:  # noqa: PYI034 - typing.Self needs Python 3.11
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(35.0)

    def await_requests(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until ``count`` more requests were answered.

        Raises:
            TimeoutError: when they were not within ``timeout_s`` seconds.
        """
        goal, deadline = self.requests + count, time.monotonic() + timeout_s
        while self.requests < goal:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{goal - self.requests} of {count} requests unanswered after {timeout_s:.0f} s")
            self._stop.wait(0.02)

    def p50_ms(self) -> float:
        """Return the median latency in milliseconds."""
        return statistics.median(self.latencies_ms)

    def _ask(self, client: InferenceClient, number: int) -> None:
        while not self._stop.is_set():
            number = (number + 1) % len(self._images.pixels)
            began = time.perf_counter()
            try:
                status, answer = client.infer(self._images.shape, self._images.pixels[number])
            except (urllib3.exceptions.HTTPError, ValueError):
                status, answer = 0, {}
            self._count(status, answer, 1000 * (time.perf_counter() - began), self._images.labels[number])

    def _count(self, status: int, answer: dict[str, Any], elapsed_ms: float, label: int) -> None:
        with self._lock:
            self.requests += 1
            if status != 200:  # noqa: PLR2004 - anything but OK is a failed request
                self.failures += 1
                return
            self.latencies_ms.append(elapsed_ms)
            self.right += top(answer) == label
            self.methods.add(answer["parameters"]["method"])
