"""Where no rule knows an error's text: a guess by the files that its traceback ends in."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import msgspec
import yaml

from enginehouse.diagnosis.events import Failure
from enginehouse.diagnosis.kinds import Diagnosis, FailureKind
from enginehouse.diagnosis.rule import Surroundings

_FILE = Path(__file__).parent / "rules" / "guesses.yaml"
# Not what Python says where code does not foresee a value: that is a bug, wherever it was raised.
_NOT_A_BUG = (
    r"\A(?![\s\S]{0,400}(?:NoneType|not supported between|unsupported operand|index out of range"
    r"|is not (?:iterable|callable|subscriptable)|values to unpack))"
)


class _Guess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: FailureKind
    files: str
    cause: str
    next: str
    names: str = ""
    texts: str = _NOT_A_BUG
    within: int = 4


def guess(failure: Failure, *, around: Surroundings, evidence: str) -> Diagnosis | None:
    """The likely kind of an unknown error, marked as a guess; None where its files say nothing."""
    for raised in failure.raised:
        for distance, file in enumerate(reversed(raised.files), start=1):
            for known in _guesses():
                if (
                    distance <= known.within
                    and re.search(known.files, file)
                    and re.search(known.names, raised.name)
                    and re.search(known.texts, raised.text)
                ):
                    short = "/".join(file.split("/")[-3:])
                    cause = known.cause.format(engine=around.engine)
                    return Diagnosis(
                        kind=known.kind,
                        evidence=evidence,
                        cause=f"probably {cause} (a guess from where it was raised, {short}; no "
                        "rule knows the text)",
                        fix=known.next.format(engine=around.engine, rebuild=around.rebuild),
                        guess=True,
                    )
    return None


@functools.cache
def _guesses() -> list[_Guess]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = _FILE.read_text(encoding="utf-8")
    return msgspec.convert(yaml.load(text, Loader=loader), list[_Guess])  # noqa: S506
