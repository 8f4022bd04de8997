"""Print a folder of a Ray cluster's node: `ray_fetch.py FOLDER MARKER ID`, in Ray's own Python.

The folder is looked for on every node, and is the one whose file MARKER is the text ID. It is
printed as a gzipped tar in base64, between a line "BEGIN" and a line "END", since the output of
one of Ray's jobs is all that its API hands out.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def pack(folder: str, marker: str, number: str) -> bytes | None:
    """The folder's files as a gzipped tar; None if it is not on this machine."""
    try:
        if (Path(folder) / marker).read_text(encoding="utf-8") != number:
            return None
    except OSError:
        return None
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    return packed.getvalue()


def main() -> None:
    """Print the folder. The exit code is 1 if no node has it."""
    config = json.loads(os.environ.get(_CONFIG, "{}"))
    os.environ[_CONFIG] = json.dumps({**config, "runtime_env": {}})
    ray.init(log_to_driver=False, logging_level="error")
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(pack).options(num_cpus=0, scheduling_strategy=where)
        try:
            packed = ray.get(task.remote(*sys.argv[1:4]))
        except ray.exceptions.RayError:  # the node was lost meanwhile
            continue
        if packed is not None:
            print("BEGIN")
            print(base64.encodebytes(packed).decode(), end="")
            print("END")
            return
    sys.exit(1)


if __name__ == "__main__":
    main()
