"""An environment with the real tinker SDK and tinker-cookbook, as a user of the service has it.

tinker-cookbook 0.6.1 also asks for tml-renderers, which only its audio recipes import and whose
release it names is not on the registry; the list leaves it out.
"""

from __future__ import annotations

from pathlib import Path

from tests.support import SUPPORT
from tests.support.package_environment import ensure_packages


def ensure_sdk() -> Path:
    """The interpreter of the environment, built if it is not there yet."""
    return ensure_packages("tinker-sdk", requirements=SUPPORT / "tinker-requirements.txt")
