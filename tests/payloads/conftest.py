from __future__ import annotations

import importlib
import sys

import pytest

from enginehouse.provisioning.programs import PAYLOADS


@pytest.fixture
def payload_module(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of a payload (those without torch), and forgets all of them again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PAYLOADS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (PAYLOADS / name.partition(".")[0]).is_dir():
            del sys.modules[name]


@pytest.fixture
def hf_server(payload_module):
    """Imports a module of the hf server."""
    return lambda name: payload_module(f"hf_server.{name}")
