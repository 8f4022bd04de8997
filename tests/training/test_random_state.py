"""Random numbers after the block are those that would have come without it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.support.stand_in import Torch

from enginehouse.training.random_state import random_state_kept


def draws(torch: Torch) -> list[float]:
    """One of each generator."""
    of_numpy = float(np.random.random())  # noqa: NPY002
    return [random.random(), of_numpy, torch.random.random(), torch.cuda_random.random()]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_draws_go_on(torch: Torch, error: type[BaseException] | None):
    """However the block ends."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    rng = torch.random.getstate(), torch.cuda_random.getstate()
    expected = draws(torch)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.random.setstate(rng[0])
    torch.cuda_random.setstate(rng[1])
    try:
        with random_state_kept():
            assert draws(torch) == expected
            draws(torch)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert draws(torch) == expected


def test_a_gpu_that_is_not_in_use_is_not_opened(torch: Torch):
    """Its generators are left alone."""
    torch.cuda.initialized = False
    with random_state_kept():
        pass
