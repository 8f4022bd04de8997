"""A trainer without torch: see tests/support/stand_in.py."""

from __future__ import annotations

import sys

import pytest
from tests.support.stand_in import Torch


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    """What `import torch` gives: random numbers, and memory on a GPU of 1,000 bytes."""
    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", torch.distributed)
    return torch
