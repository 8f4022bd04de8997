"""Puts the makers of tiny adapters on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from enginehouse.store.layout import Layout

SUPPORT = Path(__file__).parent / "support"
if str(SUPPORT) not in sys.path:
    sys.path.append(str(SUPPORT))


@pytest.fixture
def layout() -> Layout:
    """The test's own folders."""
    return Layout.from_environment()
