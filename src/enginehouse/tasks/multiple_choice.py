"""Scoring of multiple choice by log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.core.errors import TaskError
from enginehouse.tasks.base import Measure, Outcome, Score


def score_loglikelihoods(
    loglikelihoods: Sequence[float], *, choices: Sequence[str], gold: int
) -> Score:
    """Correct if `choices[gold]` has the highest log-likelihood per character (acc_norm).

    The measure `acc` is 1 if it has the highest log-likelihood. Ties go to the first choice, and
    the length is that of the choice in characters without the space put before it: both as
    lm-evaluation-harness 0.4.13 does (`ConfigurableTask.process_results`).
    """
    if len(loglikelihoods) != len(choices):
        raise TaskError(f"{len(loglikelihoods)} log-likelihoods for {len(choices)} choices")
    normalised = [value / len(text) for value, text in zip(loglikelihoods, choices, strict=True)]
    best = max(range(len(choices)), key=normalised.__getitem__)
    likeliest = max(range(len(choices)), key=loglikelihoods.__getitem__)
    return Score(
        outcome=Outcome.CORRECT if best == gold else Outcome.WRONG,
        measures={"acc": Measure(float(likeliest == gold))},
        answer=choices[best],
    )
