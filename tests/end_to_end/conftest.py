"""A machine with the real engines: its caches are the user's, its state is the tests' own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "cli" / "support"
if str(SUPPORT) not in sys.path:
    sys.path.append(str(SUPPORT))

from command_line import House  # noqa: E402


@pytest.fixture(scope="module")
def house(real_house: House) -> House:
    """Environments, models and data are built once for good; runs and servers are gone after."""
    return real_house
