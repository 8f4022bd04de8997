"""What `enginehouse install` can build an environment for."""

from __future__ import annotations

from enginehouse.engines.registry import load_served_engine
from enginehouse.provisioning.installation import Installation


def load_installation(name: str) -> Installation:
    """How the environment of an engine that runs here, or of the trainer, is built.

    Raises UnknownNameError, and ConfigurationError for an engine that runs elsewhere.
    """
    if name == "trainer":
        from enginehouse.tinker.trainers.installation import INSTALLATION

        return INSTALLATION
    return load_served_engine(name).installation
