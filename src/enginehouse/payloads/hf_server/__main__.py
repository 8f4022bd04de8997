"""`python …/hf_server --model FOLDER --port PORT`: see options.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a folder, it is its own import path; its modules name themselves in full.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from hf_server.options import parse

    options = parse(sys.argv[1:])
    # OpenMP's threads wait for one another hundreds of times a step. Spinning while they do costs
    # a shared machine nearly everything: 40 times the step's time was seen.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from hf_server.serving import serve

    serve(options)
