from __future__ import annotations

import importlib
import sys

import pytest

from enginehouse.provisioning.programs import PAYLOADS


@pytest.fixture
def hf_server(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of the hf server (those without torch), and forgets it again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PAYLOADS))
    yield lambda name: importlib.import_module(f"hf_server.{name}")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "hf_server":
            del sys.modules[name]
