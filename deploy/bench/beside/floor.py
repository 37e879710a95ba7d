"""The floor: the module called in a loop, without a server; prints the median milliseconds of a call by rows."""

from __future__ import annotations

import json
import statistics
import time

import torch

from deploy.bench.beside.network import SHAPE, build

CALLS = 1500
ROWS = (1, 8)

if __name__ == "__main__":
    module, found = build(), {}
    with torch.inference_mode():
        for rows in ROWS:
            batch, times = torch.zeros(rows, *SHAPE), []
            for _ in range(CALLS):
                began = time.perf_counter()
                module(batch)
                times.append(time.perf_counter() - began)
            found[rows] = statistics.median(times[CALLS // 5 :]) * 1e3
    print(json.dumps(found))
