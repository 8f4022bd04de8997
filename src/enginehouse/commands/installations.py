"""What `enginehouse install` can build an environment for."""

from __future__ import annotations

from enginehouse.core.errors import UnknownNameError
from enginehouse.engines.registry import ENGINES, load_served_engine
from enginehouse.harnesses.registry import HARNESSES, load_harness
from enginehouse.provisioning.installation import Installation

TRAINER = "trainer"


def load_installation(name: str) -> Installation:
    """How the environment of an engine that runs here, a harness, or the trainer is built.

    Raises UnknownNameError, and ConfigurationError for an engine that runs elsewhere.
    """
    if name == TRAINER:
        from enginehouse.tinker.trainers.installation import INSTALLATION

        return INSTALLATION
    if name in HARNESSES.names():
        return load_harness(name).installation
    if name not in ENGINES.names():
        known = (*ENGINES.names(), *HARNESSES.names(), TRAINER)
        raise UnknownNameError("engine or harness", name, known)
    return load_served_engine(name).installation
