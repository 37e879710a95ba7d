"""Run client scripts against a server of fakes: ``python -m tests.clients.run PYTHON SCRIPT…``.

``PYTHON`` is the interpreter of the clients' environment; each script gets the HTTP address, the gRPC address and the
name of a model. Status 1 when one of them fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.rig import running

MODELS = ("linear", "image")


def main(python: str, *scripts: str) -> int:
    """Return the exit status."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as it:
        for model in MODELS:
            it.serve(model)
        done = []
        for script in scripts:
            print(f"== {script}", flush=True)
            done.append(subprocess.run([python, script, it.http, it.grpc, "image"], check=False).returncode)
    return 1 if any(done) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
