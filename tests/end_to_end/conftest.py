"""A machine with the real engines: its caches are the user's, its state is the tests' own."""

from __future__ import annotations

import pytest
from tests.support.command_line import House


@pytest.fixture(scope="module")
def house(real_house: House) -> House:
    """Environments, models and data are built once for good; runs and servers are gone after."""
    return real_house
