"""The floor: the module called in a loop, without a server, with what ``load`` sends.

Prints the median milliseconds of a call by its rows, for pictures and for noise.
"""

from __future__ import annotations

import json
import statistics
import time

import torch

from deploy.bench.beside.load import noise, pictures
from deploy.bench.beside.network import build

CALLS = 1000
ROWS = (1, 8)

if __name__ == "__main__":
    module, found = build(), {}
    with torch.inference_mode():
        for rows in ROWS:
            for name, batch in (("", pictures(rows)), (" of noise", noise(rows))):
                given, times = torch.from_numpy(batch), []
                for _ in range(CALLS):
                    began = time.perf_counter()
                    module(given)
                    times.append(time.perf_counter() - began)
                found[f"{rows}{name}"] = statistics.median(times[CALLS // 5 :]) * 1e3
    print(json.dumps(found))
