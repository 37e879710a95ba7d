"""Networks that compute with torch. Only this and what it imports knows torch; see ``loader``."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from agent import architectures
from agent.planning.memory import SERVED_ROWS
from agent.planning.model_types import HUGGING_FACE
from agent.quantization import artifact as artifacts
from agent.quantization import kernels, modules, residency
from agent.serving import recording
from agent.serving.acceleration import TOLERANCE, attempt
from agent.serving.layout import LayoutWay, has_images
from agent.serving.memory import keep_freed_blocks, trim_heap
from agent.serving.residency import decide
from agent.serving.tensors import DATATYPES, TensorSpec
from agent.serving.tuning import HANDOVER_S, Tuning, joined_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agent.serving.acceleration import Trial, Way
    from agent.serving.generation.model import LanguageModel
    from agent.serving.residency import Residency, Wish
    from agent.serving.tensors import Array
    from agent.serving.terms import Terms

LANGUAGE = "agent.serving.generation.language"
COMPILED, GRAPHS = "agent.serving.compiled", "agent.serving.graphs"
EXAMPLES = 8
"""Rows that are made up to warm up and to measure with: alike ones would be computed faster than a client's."""
JOINED = 8
"""Rows of the batch that stands for joined requests when times are compared."""
WARM_UP_S = 1.0
"""How long the largest batch of a warm-up may take: clients may be waiting for its end."""


def configure(threads: int, device: str) -> bool:
    """Fix the number of threads of one operation and import the kernels; must come before the first operation.

    Unless ``device`` is ``cpu``, the GPU's context is made, so that what a first load takes is its own. Returns whether
    bitsandbytes has a faster kernel for this CPU that it would have to fetch, which it may not.
    """
    keep_freed_blocks()
    torch.set_num_threads(threads)
    uses_gpu = device != "cpu" and torch.cuda.is_available()
    if uses_gpu:
        with contextlib.suppress(RuntimeError):  # a load will meet it again, and say so to whoever asked for it
            torch.zeros(1, device="cuda")
    is_unfused = False
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        # One that cannot be imported is not needed: artifacts then use the kernels that torch alone offers.
        kernels.bitsandbytes()
        is_unfused = kernels.lacks_fused_kernel() and not uses_gpu
    # What was imported stays: collections after an unload need not walk torch's hundreds of thousands of objects
    # while they hold the interpreter's lock.
    gc.collect()
    gc.freeze()
    return is_unfused


def check(artifact: Path) -> None:
    """Read the sidecar and the directory, which must agree with the file's length; raises whatever that raises."""
    artifacts.load_sidecar(artifact)
    with safe_open(artifact, framework="np"):
        """Opening it is the check."""


def load(artifact: Path, device: str, texts_bytes: int | None = None) -> TorchNetwork:
    """Load an artifact; whatever its reader raises is left to the caller."""
    sidecar = artifacts.load_sidecar(artifact)
    module = artifacts.load(artifact, device=device)
    examples = architectures.synthetic_inputs(sidecar["model_type"], sidecar["options"], rows=EXAMPLES, seed=0)
    arrays = [examples[spec["name"]].numpy() for spec in sidecar["inputs"]]
    network = TorchNetwork(module, sidecar, modules.resident_bytes(module), arrays)
    if sidecar["model_type"] == HUGGING_FACE:
        network.learn_to_write(artifact, sidecar, texts_bytes)
    return network


def release_memory() -> None:
    """Collect cycles, empty torch's cache and return the C heap's free pages to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def reset_device_peak() -> None:
    """Let CUDA's peak begin anew."""
    if _uses_cuda():
        torch.cuda.reset_peak_memory_stats()


def device_memory() -> dict[str, int] | None:
    """Return what torch and the device say of its memory, in bytes; None while CUDA is not in use."""
    if not _uses_cuda():
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return {
        "allocated_bytes": torch.cuda.memory_allocated(),
        "reserved_bytes": torch.cuda.memory_reserved(),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }


def _uses_cuda() -> bool:
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    return is_initialized()


class TorchNetwork:
    """A module in eval mode behind the ``Network`` protocol.

    Args:
        module: takes its inputs in the sidecar's order; returns a tensor, several in the outputs' order, or a mapping.
        sidecar: of the artifact.
        resident_bytes: what the module's weights occupy.
        examples: inputs of a few rows to warm up and to measure with.
    """

    def __init__(
        self, module: torch.nn.Module, sidecar: dict[str, Any], resident_bytes: int, examples: Sequence[Array]
    ) -> None:
        self.model_type = str(sidecar["model_type"])
        self.method = str(sidecar["method"])
        self.inputs = tuple(map(TensorSpec.from_json, sidecar["inputs"]))
        self.outputs = tuple(map(TensorSpec.from_json, sidecar["outputs"]))
        counts_rows = all(spec.shape and spec.shape[0] == -1 for spec in self.inputs + self.outputs)
        self.is_batchable = counts_rows and bool(sidecar["batchable"])
        self.resident_bytes = resident_bytes
        self.text: LanguageModel | None = None
        self.no_text = "it answers tensors"
        self.unpacked_bytes = 0
        self.joined_rows = SERVED_ROWS
        self.row_s = math.inf
        self._module: torch.nn.Module | None = module.eval()
        self._forward: Any = self._module
        self._graph: Any = None
        self._device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
        self._examples = examples

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Compute the outputs."""
        if self._module is None:
            raise RuntimeError("the model was closed")
        with torch.inference_mode():
            given = [self._to_tensor(array, spec) for array, spec in zip(arrays, self.inputs, strict=True)]
            answer = self._in_order(self._forward(*given))
            return [_to_array(tensor, spec) for tensor, spec in zip(answer, self.outputs, strict=True)]

    def warm_up(self, rows: int) -> int:
        """Compute plausible made-up inputs: one row, and where rows are joined two, then as many as time allows."""
        self._compute(1)
        if not self.is_batchable:
            return 1
        began = time.perf_counter()
        self._compute(2)
        affordable = int(WARM_UP_S / (time.perf_counter() - began) * 2)
        largest = max(2, min(rows, affordable))
        if largest > 2:  # noqa: PLR2004 - as above
            self._compute(largest)
        return largest

    def learn_to_write(self, artifact: Path, sidecar: dict[str, Any], texts_bytes: int | None) -> None:
        """Find out whether the artifact makes texts, whose keys and values may take so much."""
        try:
            language = importlib.import_module(LANGUAGE)
        except ImportError as error:  # of the optional package, one that is older than what is used of it
            self.no_text = str(error)
            return
        try:
            self.text = language.language_model(artifact, sidecar, self._module, self._device, texts_bytes)
        except language.NoTextError as error:
            self.no_text = str(error)

    def reside(self, wish: Wish) -> Residency:
        """Keep weights packed or unpacked; one row is timed, and where rows are joined ``JOINED`` too."""
        module = self.module
        self._forget()
        found = decide(
            wish,
            residency.unpacked_bytes(module),
            functools.partial(residency.keep, module),
            functools.partial(residency.drop, module),
            self._pass,
        )
        self.unpacked_bytes = found.unpacked_bytes if found.is_unpacked else 0
        return found

    def tune(self, most_rows: int) -> Tuning:
        """Choose how the forward pass is called and how many rows are joined at most."""
        self._forget()
        self._graph, reason = self._recorded(min(self._seconds(1) for _ in range(3)))
        self._forward = self._graph
        layout = self._attempt(LayoutWay(self)) if self.text is None and has_images(self.inputs) else None
        rows, row_ms = joined_rows(self._compute, most_rows) if self.is_batchable else (1, {})
        self.joined_rows = rows
        is_plain = self.text is None and self._device is not None and self._device.type == "cpu"
        self.row_s = row_ms[1] / 1e3 - HANDOVER_S if is_plain and 1 in row_ms else math.inf
        return Tuning(self._graph is not self._module, reason, rows, row_ms, layout)

    def _recorded(self, row_s: float) -> tuple[Any, str]:
        if self.text is not None:
            return self._module, "texts are made step by step"
        if not self.is_batchable or any(size == -1 for spec in self.inputs for size in spec.shape[1:]):
            return self._module, "its rows have no fixed shape"

        def inputs(rows: int) -> list[torch.Tensor]:
            generator = np.random.default_rng(rows)
            return [
                self._to_tensor(generator.permutation(np.resize(array, (rows, *array.shape[1:]))), spec)
                for array, spec in zip(self._examples, self.inputs, strict=True)
            ]

        return recording.record(self._module, inputs, row_s=row_s)

    def accelerate(self, terms: Terms, rows: int) -> dict[str, Trial]:
        """Try the compiler, and then graphs of what is called by then, where they are asked for."""
        found = {}
        if terms.compile != "off":
            found["compile"] = self._attempt(importlib.import_module(COMPILED).CompiledWay(self, rows))
        if terms.graphs != "off":
            allowed_bytes = max(0, terms.allowed_bytes - self.unpacked_bytes)
            found["graphs"] = self._attempt(importlib.import_module(GRAPHS).GraphsWay(self, rows, allowed_bytes))
        if any(trial.is_kept for trial in found.values()):
            self.row_s = math.inf  # what was made is called by the thread that it was made for
        if self.is_batchable and any(trial.is_kept for trial in found.values()):
            self.joined_rows, _row_ms = joined_rows(self._compute, rows)
        return found

    @property
    def module(self) -> torch.nn.Module:
        """The module itself."""
        if self._module is None:
            raise RuntimeError("the model was closed")
        return self._module

    @property
    def call(self) -> Callable[..., Any]:
        """What computes: the module, or a faster way to it."""
        forward: Callable[..., Any] = self._forward
        return forward

    def change(self, call: Callable[..., Any]) -> None:
        """Compute with ``call`` from now on; between two passes only."""
        self._forward = call

    def batches(self, rows: int) -> Iterator[list[torch.Tensor]]:
        """Yield made-up inputs on the device, of every size of batch to be ready for: 1, 2, 4, … and ``rows``."""
        sizes = {1} if not self.is_batchable else {*(1 << power for power in range(rows.bit_length())), rows}
        for size in sorted(sizes):
            yield [
                self._to_tensor(array, spec) for array, spec in zip(self._examples_of(size), self.inputs, strict=True)
            ]

    @property
    def varying(self) -> list[list[int]]:
        """Dimensions that vary besides the rows, for each input."""
        return [[at for at, size in enumerate(spec.shape) if size == -1 and at] for spec in self.inputs]

    def _attempt(self, way: Way) -> Trial:
        device = "cpu" if self._device is None else self._device.type
        return attempt(way, self._pass, self._answers, TOLERANCE[device])

    def _pass(self) -> None:
        """Compute what times are compared of: a row, and where rows are joined a small batch."""
        self._compute(1)
        if self.is_batchable:
            self._compute(JOINED)

    def _answers(self) -> list[Array]:
        sizes = (1, JOINED) if self.is_batchable else (1,)
        return [output for rows in sizes for output in self._compute(rows)]

    def close(self) -> None:
        """Let go of the module and the examples."""
        self._forget()
        self._module, self._forward, self.text, self._examples = None, None, None, ()

    def _forget(self) -> None:
        """Compute with the module itself; what was made to call it faster is let go."""
        recording.forget(self._graph)
        self._graph, self._forward, self.row_s = None, self._module, math.inf

    def _seconds(self, rows: int) -> float:
        began = time.perf_counter()
        self._compute(rows)
        return time.perf_counter() - began

    def _compute(self, rows: int) -> list[Array]:
        return self.run(self._examples_of(rows))

    def _examples_of(self, rows: int) -> list[Array]:
        return [np.resize(array, (rows, *array.shape[1:])) for array in self._examples]

    def _to_tensor(self, array: Array, spec: TensorSpec) -> torch.Tensor:
        # torch wants memory that it may write to; a batch that was just joined already is.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if spec.datatype == "BF16":
            tensor = tensor.view(torch.bfloat16)
        return tensor if self._device is None else tensor.to(self._device)

    def _in_order(self, answer: Any) -> Sequence[torch.Tensor]:
        if isinstance(answer, dict):
            return [answer[spec.name] for spec in self.outputs]
        return answer if isinstance(answer, (tuple, list)) else [answer]


def _to_array(tensor: torch.Tensor, spec: TensorSpec) -> Array:
    if spec.datatype == "BF16":
        return np.asarray(tensor.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy())
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.cpu().numpy(), dtype=DATATYPES[spec.datatype])
