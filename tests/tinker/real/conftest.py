"""The Tinker service with a real trainer and a real vLLM, and the real SDK as its client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.tinker_sdk import ensure_sdk
from tests.support.tinker_service import LIMITS, TinkerService

from enginehouse.provisioning.models import ResolvedModel


@pytest.fixture(scope="session")
def sdk() -> Path:
    """The interpreter of an environment with tinker and tinker-cookbook, built on first use."""
    return ensure_sdk()


@pytest.fixture(scope="session")
def service(shared_house: House, smollm2: ResolvedModel, sdk: Path) -> Iterator[TinkerService]:
    """The service in float32 with vLLM, for all tests of this folder.

    With several workers, one of them runs all tests that ask for it (`_ByServer`).
    """
    words = ("--sampler", "vllm", "--dtype", "float32", *LIMITS)
    service = TinkerService(shared_house, sdk=sdk, model=smollm2.path, words=words)
    service.start()
    yield service
    assert service.stop().code == 143  # SIGTERM, after it has drained
