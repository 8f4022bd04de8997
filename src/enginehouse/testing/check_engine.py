"""The conformance suite: what every engine must do, as named cases over a Sampler.

The fake engine and the real vLLM both pass; a new engine is finished when it does. Cases that need
a capability which the sampler does not declare are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from enginehouse.core.errors import WireError
from enginehouse.core.sampler import Capability, Sampler
from enginehouse.testing.engine_cases import (  # noqa: F401 - importing them makes them cases
    answers,
    constraints,
    logprobs,
    refusals,
    tools,
)
from enginehouse.testing.engine_cases.base import CASES, Case, Inapplicable, Subject

__all__ = ["CASES", "Case", "CaseResult", "check"]


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a case; `detail` says what went wrong, or what was missing."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str = ""
    seconds: float = 0.0


async def check(
    sampler: Sampler,
    *,
    only: Collection[str] | None = None,
    adapter: str | None = None,
    inapplicable: Mapping[str, str] | None = None,
) -> list[CaseResult]:
    """Run the cases (or those named) one after another; a failing case never raises.

    `adapter` is the name of a LoRA adapter that is loaded. `inapplicable` maps cases that the
    protocol gives no meaning to (a server that takes no model's name knows no unknown one) to the
    reason; they are skipped.
    """
    subject = Subject(sampler, adapter)
    reasons = inapplicable or {}
    assert reasons.keys() <= CASES.keys(), f"no such cases: {reasons.keys() - CASES.keys()}"
    return [
        await _check(name, case, subject, reason=reasons.get(name))
        for name, case in CASES.items()
        if only is None or name in only
    ]


async def _check(name: str, case: Case, subject: Subject, *, reason: str | None) -> CaseResult:
    if lacking := case.needs - subject.sampler.capabilities.supports:
        reason = f"lacks {', '.join(sorted(lacking))}"
    elif Capability.ADAPTERS in case.needs and subject.adapter is None:
        reason = "no adapter was named"
    if reason is not None:
        return CaseResult(name=name, outcome="skipped", detail=reason)
    begun = time.perf_counter()
    try:
        await case.run(subject)
    except Inapplicable as why:
        return CaseResult(name=name, outcome="skipped", detail=str(why))
    except (AssertionError, WireError) as error:
        detail = f"{case.promise}: {error}"
        seconds = time.perf_counter() - begun
        return CaseResult(name=name, outcome="failed", detail=detail, seconds=seconds)
    return CaseResult(name=name, outcome="passed", seconds=time.perf_counter() - begun)
