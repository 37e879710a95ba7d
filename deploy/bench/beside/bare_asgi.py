"""As little as Python can do: an ASGI application under uvicorn that computes where it parses."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import orjson
import torch
import uvicorn

from deploy.bench.beside.network import build

MODULE = build()
HEADER_LENGTH = b"inference-header-content-length"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer an inference request of one input, in JSON or binary."""
    if scope["type"] != "http":
        return
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    length = next((int(value) for name, value in scope["headers"] if name == HEADER_LENGTH), None)
    request = orjson.loads(body if length is None else memoryview(body)[:length])
    tensor = request["inputs"][0]
    if length is None:
        array = np.array(tensor["data"], dtype=np.float32)
    else:
        array = np.frombuffer(body, dtype=np.float32, offset=length).copy()
    with torch.inference_mode():
        answer = MODULE(torch.from_numpy(array.reshape(tensor["shape"]))).numpy()
    output: dict[str, Any] = {"name": "output", "datatype": "FP32", "shape": list(answer.shape)}
    response = {"model_name": "cnn", "model_version": "1", "outputs": [output]}
    if request.get("parameters", {}).get("binary_data_output"):
        raw = answer.tobytes()
        output["parameters"] = {"binary_data_size": len(raw)}
        head = orjson.dumps(response)
        headers = [(HEADER_LENGTH, b"%d" % len(head)), (b"content-type", b"application/octet-stream")]
        reply = head + raw
    else:
        output["data"] = answer.ravel().tolist()
        headers, reply = [(b"content-type", b"application/json")], orjson.dumps(response)
    headers.append((b"content-length", b"%d" % len(reply)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
    )
