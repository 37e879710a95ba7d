"""The thread in which artifacts become networks, and what each load takes of the memory, measured.

One thread: the first load waits for the imports, and two loads never need their memory at the same time. The event
loop goes on meanwhile, so that what other models compute during a load is part of its peak.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agent.exhaustion import is_out_of_memory
from agent.quantization.process import peak_rss_bytes
from agent.serving.errors import LoadFailedError
from agent.serving.memory import reset_peak_rss, rss_bytes, trim_heap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.serving.slots import Loader, Network
    from agent.serving.terms import Terms

JsonObject = dict[str, Any]


class LoadingThread:
    """Runs a loader away from the event loop."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._base_rss_bytes: int | None = None

    def prepare(self) -> asyncio.Future[None]:
        """Begin with the slow imports."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._prepare)

    async def check(self, artifact: Path) -> None:
        """Raise ``LoadFailedError`` for an artifact that can be told to be bad without loading it."""
        await self._run(self._loader.check, artifact)

    async def load(self, artifact: Path, rows: int, terms: Terms) -> tuple[Network, JsonObject]:
        """Return the network, warmed up with batches of up to ``rows`` rows, and what that took.

        The figures: ``load_ms``, of which ``warm_up_ms`` were the first batches; ``warm_up_rows`` of the largest batch
        that was computed; ``rss_before_bytes``, ``rss_after_bytes`` and ``peak_rss_bytes``; ``is_peak_exact``, false
        when the peak may be one of an earlier time because the system does not let it be reset; ``device`` as in
        ``memory``, None without CUDA; ``texts``, what may be written at once, None where nothing is. Last come
        ``residency``, ``tuning`` and the ways that were tried, by their names, whose time and memory are in none of
        them: they are compared with what packed weights need.

        Raises:
            LoadFailedError: it could not be loaded, or not compute.
        """
        return await self._run(self._load, artifact, rows, terms)  # type: ignore[no-any-return]

    async def release_memory(self) -> None:
        """Give memory that nothing uses any more back to the system."""
        await self._run(self._loader.release_memory)

    def memory(self) -> JsonObject:
        """Return what the process has of the memory.

        ``base_rss_bytes`` was resident after the imports and before the first model, None until then; peaks are those
        since the last load began.
        """
        return {
            "base_rss_bytes": self._base_rss_bytes,
            "rss_bytes": rss_bytes(),
            "peak_rss_bytes": peak_rss_bytes(),
            "device": self._loader.device_memory(),
        }

    async def _run(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # What follows runs in the thread.

    def _prepare(self) -> None:
        self._loader.prepare()
        self._base_rss_bytes = rss_bytes()

    def _load(self, artifact: Path, rows: int, terms: Terms) -> tuple[Network, JsonObject]:
        began = time.perf_counter()
        before, was_reset = rss_bytes(), reset_peak_rss()
        peak_before = peak_rss_bytes()
        self._loader.reset_device_peak()
        network = self._loader.load(artifact, terms.texts_bytes)
        loaded = time.perf_counter()
        with _or_closed(network, "the warm-up"):
            warmed = network.warm_up(rows)
        ended, peak = time.perf_counter(), peak_rss_bytes()
        figures = {
            "load_ms": round((ended - began) * 1e3, 3),
            "warm_up_ms": round((ended - loaded) * 1e3, 3),
            "warm_up_rows": warmed,
            "rss_before_bytes": before,
            "rss_after_bytes": rss_bytes(),
            "peak_rss_bytes": peak,
            "is_peak_exact": was_reset or peak > peak_before,
            "device": self._loader.device_memory(),
        }
        figures["texts"] = None if network.text is None else network.text.told()
        with _or_closed(network, "unpacking the weights"):
            figures["residency"] = network.reside(terms.wish).to_json()
        with _or_closed(network, "tuning it"):
            figures["tuning"] = network.tune(rows).to_json()
            figures |= {name: trial.to_json() for name, trial in network.accelerate(terms, warmed).items()}
        trim_heap()
        return network, figures


@contextlib.contextmanager
def _or_closed(network: Network, what: str) -> Iterator[None]:
    """Let go of a network of which something failed."""
    try:
        yield
    except Exception as error:
        network.close()
        traceback.clear_frames(error.__traceback__)
        code = "insufficient_memory" if is_out_of_memory(error) else "bad_artifact"
        raise LoadFailedError(code, f"{what} failed: {type(error).__name__}: {error}") from error
