"""The conformance suite of trainers: what every Trainer must do, as named cases.

The fake, the trainer over transformers and the client of a Megatron server all pass it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import msgspec

from enginehouse.core.errors import EnginehouseError
from enginehouse.testing.trainer_cases import (  # noqa: F401 - importing them makes them cases
    faults,
    mathematics,
    persistence,
)
from enginehouse.testing.trainer_cases.base import CASES, Subject
from enginehouse.tinker.trainers.base import Trainer

__all__ = ["CASES", "CaseFailure", "check_trainer"]


class CaseFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that failed, and how."""

    name: str
    detail: str


async def check_trainer(
    trainer: Trainer,
    *,
    kill: Callable[[], Awaitable[None] | None],
    only: Collection[str] | None = None,
) -> list[CaseFailure]:
    """Run the cases (or those named) one after another on a trainer that has started.

    `kill` ends it as by kill -9, and it is started again. Each case has models of its own, which
    are unloaded. Returns those that failed; a case never raises.
    """
    failures = []
    for name, run in CASES.items():
        if only is not None and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(trainer=trainer, kill=kill, folder=Path(folder), prefix=name)
            try:
                await run(subject)
            except (AssertionError, EnginehouseError) as error:
                promise = " ".join((run.__doc__ or "").split())
                detail = f"{promise} {type(error).__name__}: {error}"
                failures.append(CaseFailure(name=name, detail=detail))
            await subject.clear()
    return failures
