"""Asks a sampler for every sample of the tasks, scores the answers, and summarises them."""

from enginehouse.evaluation.asking import check_tasks
from enginehouse.evaluation.plan import TaskPlans, plan_tasks
from enginehouse.evaluation.records import EvaluationSpec, Prices, TaskSpec
from enginehouse.evaluation.rescoring import rescore
from enginehouse.evaluation.runner import Timings, count_missing, evaluate
from enginehouse.evaluation.summary import find_sample, require_headlines, summarise

__all__ = [
    "EvaluationSpec",
    "Prices",
    "TaskPlans",
    "TaskSpec",
    "Timings",
    "check_tasks",
    "count_missing",
    "evaluate",
    "find_sample",
    "plan_tasks",
    "require_headlines",
    "rescore",
    "summarise",
]
