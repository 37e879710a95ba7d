"""Triton with a Python callable behind it: the server that the ``nvidia-pytriton`` wheel carries."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from deploy.bench.beside.network import CLASSES, SHAPE, build

MODULE = build()


@batch
def infer(input: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:  # noqa: A002 - the tensor's name
    """Compute a batch."""
    with torch.inference_mode():
        return [MODULE(torch.from_numpy(np.array(input))).numpy()]


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        grpc_address="127.0.0.1",
        grpc_port=port + 1,
        metrics_address="127.0.0.1",
        metrics_port=port + 2,
        log_verbose=0,
    )
    with Triton(config=config) as server:
        server.bind(
            model_name="cnn",
            infer_func=infer,
            inputs=[Tensor(name="input", dtype=np.float32, shape=SHAPE)],
            outputs=[Tensor(name="output", dtype=np.float32, shape=(CLASSES,))],
            config=ModelConfig(max_batch_size=16, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        server.serve()
