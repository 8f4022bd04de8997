"""Judges a run against its baseline by a policy file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from enginehouse.deployment.configuration import parse, read_yaml
from enginehouse.evaluation.gate import judge
from enginehouse.evaluation.policy import Policy
from enginehouse.results.gate import Gate
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A gate's verdicts, and the policy that they follow."""

    gate: Gate
    policy: Policy


def judge_run(run: str, *, baseline: str, policy: Path, layout: Layout) -> Judgement:
    """Judge a run, named like its baseline by an id, the beginning of one, or a folder.

    Raises ConfigurationError for the policy and for runs of another kind, RunNotFoundError,
    StoreError. Blocking: reads both journals.
    """
    rules = parse(Policy, read_yaml(policy), origin=str(policy))
    runs = (open_run(layout, run), open_run(layout, baseline))
    for opened in runs:
        opened.require_kind("evaluation", instead="play analyze")
    return Judgement(gate=judge(*runs, rules), policy=rules)
