"""The module as MLServer's users write a runtime."""

from __future__ import annotations

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from deploy.bench.beside.network import build


class Runtime(MLModel):
    """One module."""

    async def load(self) -> bool:
        """Build it."""
        self.module = build()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute a batch."""
        array = NumpyCodec.decode_input(payload.inputs[0])
        with torch.inference_mode():
            answer = self.module(torch.from_numpy(array)).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", answer)])
