"""Ways to get from a float32 checkpoint to 4-bit weights, each run in a process of its own by `deploy.bench.memory`.

    python -m deploy.bench.contenders NAME JOB    (JOB: JSON with `pt`, `safetensors`, `hf`, `output`, `form`)

Each way is a pair: what it loads before the work, which belongs to its base, and the work. All make NF4 with double
quantization and blocks of 64 on the CPU. A way reports the seconds of the work by the wall and by the processor, and
what it made.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deploy.bench.anonymous import READY
from deploy.bench.weights import Form, recognised

if TYPE_CHECKING:
    from collections.abc import Callable

JsonObject = dict[str, Any]
GATE_ROWS = 8
"""As few as a gate may have: its forward passes are not what is compared."""


def main() -> int:
    """Run one way by the protocol of `deploy.bench.anonymous`."""
    name, job = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(job["threads"])
    work = WAYS[name](job)
    print(READY, flush=True)
    sys.stdin.readline()
    wall, processor = time.perf_counter(), time.process_time()
    made = work()
    spent = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    print(json.dumps(spent | made), flush=True)
    return 0


def _bare(job: JsonObject) -> Callable[[], JsonObject]:
    """The library's own call on each tensor that the builder packs, the results dropped: the least work there is."""
    from bitsandbytes import functional  # noqa: PLC0415 - each way loads its own libraries
    from safetensors import safe_open  # noqa: PLC0415 - as above

    functional.quantize_4bit(torch.randn(64, 64), blocksize=64, compress_statistics=True, quant_type="nf4")

    def work() -> JsonObject:
        count = 0
        with safe_open(job["safetensors"], framework="pt") as file:
            for name in _packed_names(Form(**job["form"])):
                functional.quantize_4bit(
                    file.get_tensor(name), blocksize=64, compress_statistics=True, quant_type="nf4"
                )
                count += 1
        return {"packed": count}

    return work


def _builder(job: JsonObject, source: str) -> Callable[[], JsonObject]:
    """This product's whole build job: quantize, write the artifact, run source and artifact on the gate's rows."""
    from agent.quantization import jobs, kernels  # noqa: PLC0415 - each way loads its own libraries

    kernels.kernel(torch.device("cpu"), "nf4")

    def work() -> JsonObject:
        begin = (time.perf_counter(), time.process_time())
        last = [0.0, 0.0]

        def note(_event: JsonObject) -> None:
            last[:] = [time.perf_counter() - begin[0], time.process_time() - begin[1]]

        result = jobs.run(
            {
                "job": "build",
                "checkpoint": job[source],
                "model_type": "vit",
                "method": "nf4-dq",
                "output_dir": job["output"],
                "gate": {"rows": GATE_ROWS},
                "device": "cpu",
                "threads": job["threads"],
            },
            note,
        )
        return {
            "quantize_wall_s": last[0],
            "quantize_processor_s": last[1],
            "packed_bytes": result["resident_bytes"],
            "agreement": result["gate"]["agreement"],
        }

    return work


def _builder_alone(job: JsonObject) -> Callable[[], JsonObject]:
    """The part of that job that the others do too: from the checkpoint to the written artifact."""
    from agent.planning.methods import METHODS  # noqa: PLC0415 - each way loads its own libraries
    from agent.quantization import kernels, quantizer  # noqa: PLC0415 - as above
    from agent.quantization.assignment import Scheme  # noqa: PLC0415 - as above
    from agent.quantization.checkpoint import open_checkpoint  # noqa: PLC0415 - as above

    kernels.kernel(torch.device("cpu"), "nf4")
    found = recognised(Form(**job["form"]))

    def work() -> JsonObject:
        path = Path(job["output"]).with_suffix(".safetensors")
        checkpoint = open_checkpoint(Path(job["safetensors"]))
        scheme = Scheme.uniform(METHODS["nf4-dq"])
        quantizer.quantize(checkpoint, found, path, scheme, blocksize=64, progress=lambda *_counts: None)
        return {"packed_bytes": path.stat().st_size}

    return work


def _naive(job: JsonObject) -> Callable[[], JsonObject]:
    """Load the checkpoint into a float model, put a `Linear4bit` in place of every Linear, move it to its device."""
    import bitsandbytes as bnb  # noqa: PLC0415 - each way loads its own libraries

    from agent import architectures  # noqa: PLC0415 - as above

    def work() -> JsonObject:
        form = Form(**job["form"])
        model = architectures.build("vit", form.classes, **form.options)
        model.load_state_dict(torch.load(job["pt"], weights_only=True)["model_state_dict"])
        for name, layer in list(model.named_modules()):
            if type(layer) is not nn.Linear:
                continue
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, compress_statistics=True, quant_type="nf4"
            )
            packed.load_state_dict(layer.state_dict())
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed)
        return _four_bit(model.to("cpu"), bnb)

    return work


def _transformers(job: JsonObject) -> Callable[[], JsonObject]:
    """`from_pretrained` with a `BitsAndBytesConfig`, which quantizes as it loads."""
    importlib.import_module("accelerate")  # without it the call below would say so at length
    transformers = importlib.import_module("transformers")
    bnb = importlib.import_module("bitsandbytes")
    transformers.logging.disable_progress_bar()

    def work() -> JsonObject:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        model, told = transformers.ViTForImageClassification.from_pretrained(
            job["hf"], quantization_config=config, dtype=torch.float32, device_map="cpu", output_loading_info=True
        )
        absent = sorted(told["missing_keys"])
        if absent:
            raise LookupError(f"{len(absent)} tensors were not found, the first is {absent[0]}")
        return _four_bit(model, bnb)

    return work


def _packed_names(form: Form) -> list[str]:
    """Return the matrices that the builder packs under a 4-bit method."""
    from agent.planning.methods import MIN_PACKED_NUMEL  # noqa: PLC0415 - the bare calls need nothing else of it

    shapes = form.shapes().items()
    return [name for name, shape in shapes if len(shape) == 2 and torch.Size(shape).numel() >= MIN_PACKED_NUMEL]  # noqa: PLR2004 - a matrix


def _four_bit(model: nn.Module, bnb: Any) -> JsonObject:
    """Report what a model of bitsandbytes' layers holds.

    Raises:
        LookupError: it has layers that are not quantized after all.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    if not layers or not all(layer.weight.dtype == torch.uint8 for layer in layers):
        raise LookupError(f"of {len(layers)} Linear4bit layers some hold no codes")
    return {
        "packed": len(layers),
        "packed_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


WAYS: dict[str, Callable[[JsonObject], Callable[[], JsonObject]]] = {
    "bare": _bare,
    "builder-pt": lambda job: _builder(job, "pt"),
    "builder-safetensors": lambda job: _builder(job, "safetensors"),
    "builder-alone": _builder_alone,
    "naive": _naive,
    "transformers": _transformers,
}


if __name__ == "__main__":
    sys.exit(main())
