"""``nibbled`` in a control group of its own: entered before anything is loaded, and inherited by its children."""

import os
from pathlib import Path

if __name__ == "__main__":
    from tests.faults.groups import VARIABLE

    (Path(os.environ.pop(VARIABLE)) / "cgroup.procs").write_text("0", encoding="ascii")
    from agent.cli import main

    main()
