"""`python …/trainer --descriptor N --model FOLDER`: started by enginehouse.tinker.trainers.hf.

It answers calls from the socket that it inherits as file descriptor N, and logs to standard error.
It ends with SIGTERM, and when the other end of the socket is closed.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.options import Options

LOG = logging.getLogger("trainer")


def main(options: Options) -> None:
    """Load the model and answer."""
    logging.basicConfig(format="%(levelname)s %(asctime)s %(message)s", level=logging.INFO)
    import torch
    import transformers

    from trainer.connection import Connection
    from trainer.engine import Engine
    from trainer.serving import serve

    connection = Connection(options.descriptor)
    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    LOG.info("transformers %s, torch %s", transformers.__version__, torch.__version__)
    engine = Engine.open(
        options.model,
        base_model=options.base_model,
        device=options.device,
        dtype=options.dtype,
    )
    LOG.info("ready: %s, %d threads", engine.info, threads)
    serve(engine, connection)


if __name__ == "__main__":
    # Run as a folder, it is its own import path; its modules name themselves in full.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # OpenMP's threads spin while they wait for one another, which costs a shared machine dearly.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from trainer.options import parse

    main(parse(sys.argv[1:]))
