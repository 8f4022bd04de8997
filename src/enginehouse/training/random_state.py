"""The random-number state of a trainer's process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the state of the process's random-number generators, however the block ends.

    They are Python's, numpy's legacy one, torch's on the CPU and, if CUDA is in use, on every GPU.
    Generator objects of the trainer's own are not touched.
    """
    import torch

    of_python, of_torch = random.getstate(), torch.get_rng_state()
    of_numpy = np.random.get_state()  # noqa: NPY002 - the one that trainers share
    # asking a GPU that is not in use yet would open it
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        if of_cuda is not None:
            torch.cuda.set_rng_state_all(of_cuda)
