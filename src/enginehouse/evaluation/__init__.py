"""Asks a sampler for every sample of the tasks, scores the answers, and summarises them."""

from enginehouse.evaluation.asking import require_supported
from enginehouse.evaluation.judge import Judge
from enginehouse.evaluation.plan import TaskPlans, plan_tasks
from enginehouse.evaluation.records import EvaluationSpec, JudgeSpec, Prices, TaskSpec
from enginehouse.evaluation.rescoring import rescore
from enginehouse.evaluation.runner import Timings, count_missing, evaluate
from enginehouse.evaluation.summary import find_sample, require_headlines, summarise

__all__ = [
    "EvaluationSpec",
    "Judge",
    "JudgeSpec",
    "Prices",
    "TaskPlans",
    "TaskSpec",
    "Timings",
    "count_missing",
    "evaluate",
    "find_sample",
    "plan_tasks",
    "require_headlines",
    "require_supported",
    "rescore",
    "summarise",
]
