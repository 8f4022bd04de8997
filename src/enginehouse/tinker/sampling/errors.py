"""What the users of the service are told when an engine refuses or fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    EnginehouseError,
    NoCreditError,
    TinkerError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
)

_OURS = (UnauthorizedError, UnknownModelError, NoCreditError)  # refusals that no user caused


@contextmanager
def as_tinker_errors() -> Iterator[None]:
    """Raise TinkerError for every EnginehouseError of the block, saying whose mistake it is."""
    try:
        yield
    except TinkerError:
        raise
    except EnginehouseError as error:
        blamed = isinstance(error, BadRequestError | UnsupportedError | ConfigurationError)
        of_user = blamed and not isinstance(error, _OURS)
        raise TinkerError(
            error.message,
            why=error.why,
            fix=error.fix,
            log=error.log,
            category="user" if of_user else "server",
            status=400 if of_user else 500,
        ) from error
