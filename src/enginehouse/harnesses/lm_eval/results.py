"""Reads what lm-eval reports: the dict of `simple_evaluate`, in a JSON file per requested name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.harnesses.base import HarnessMetric, HarnessResult, HarnessSample
from enginehouse.tasks.base import Measure, Outcome

_NO_FILTER = "none"
# What lm-eval's filters leave of an answer in which they find none.
_UNREADABLE = "[invalid]"
# What differs between machines, and not between configurations.
_LOCAL = ("pretrained", "tokenizer", "model", "base_url")


def read_results(files: Iterable[Path], *, version: str) -> tuple[HarnessResult, ...]:
    """Every task's and group's result, each once, groups first. `version` is lm-eval's."""
    results: dict[str, HarnessResult] = {}
    for file in files:
        report = msgspec.json.decode(file.read_bytes())
        groups = report.get("group_subtasks") or {}
        names = sorted(report["results"], key=lambda name: not groups.get(name))
        for name in names:
            result = _result(name, report, version=version)
            if result is not None:
                results.setdefault(name, result)
    return tuple(results.values())


def _result(name: str, report: Mapping[str, Any], *, version: str) -> HarnessResult | None:
    """One task or group; None for a group that has no figures of its own."""
    better = (report.get("higher_is_better") or {}).get(name) or {}
    metrics = tuple(_metrics(report["results"][name], better=better))
    if not metrics:
        return None
    subtasks = tuple((report.get("group_subtasks") or {}).get(name) or ())
    configuration = report["configs"].get(name) or {"group": name, "task": subtasks}
    sizes = (report.get("n-samples") or {}).get(name) or {}
    rows = () if subtasks else report.get("samples", {}).get(name, ())
    return HarnessResult(
        task=name,
        harness="lm-eval",
        harness_version=version,
        task_version=str(report["versions"].get(name, "")),
        configuration_digest=_digest(configuration),
        headline=metrics[0].label,
        metrics=metrics,
        samples=_samples(rows, metrics=metrics),
        full_size=sizes.get("original"),
        source=" ".join(
            str(configuration[key])
            for key in ("dataset_path", "dataset_name")
            if configuration.get(key)
        ),
        subtasks=subtasks,
    )


def _metrics(figures: Mapping[str, Any], *, better: Mapping[str, Any]) -> Iterator[HarnessMetric]:
    """The figures "acc,none" with their errors "acc_stderr,none", in lm-eval's order."""
    for key, value in figures.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{name}_stderr,{filtered}")
        yield HarnessMetric(
            name=name,
            value=float(value),
            standard_error=float(error) if isinstance(error, int | float) else None,
            filter="" if filtered == _NO_FILTER else filtered,
            higher_is_better=better.get(name),
        )


def _digest(configuration: Mapping[str, Any]) -> str:
    metadata = configuration.get("metadata")
    if isinstance(metadata, dict):
        kept = {key: value for key, value in metadata.items() if key not in _LOCAL}
        configuration = {**configuration, "metadata": kept}
    return hashlib.sha256(msgspec.json.encode(configuration, order="sorted")).hexdigest()


def _samples(
    rows: Sequence[Mapping[str, Any]], *, metrics: Sequence[HarnessMetric]
) -> tuple[HarnessSample, ...]:
    """One per document; lm-eval has a row for each of its filters."""
    documents: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        documents.setdefault(str(row["doc_id"]), []).append(row)
    headline = metrics[0]
    is_binary = _is_binary(documents.values(), headline)
    samples = []
    for position, (item, filtered) in enumerate(documents.items()):
        first = filtered[0]
        samples.append(
            HarnessSample(
                item=item,
                position=position,
                prompt=_prompt(first),
                answer=_answer(first),
                target=_target(first),
                outcome=_outcome(filtered, headline) if is_binary else None,
                measures=dict(_measures(filtered, metrics)),
                truncated=first.get("truncated", False),
                shortened=first.get("shortened", False),
            )
        )
    return tuple(samples)


def _value(row: Mapping[str, Any] | None, metric: str) -> float | None:
    value = None if row is None else row.get(metric)
    return float(value) if isinstance(value, int | float) else None


def _row(rows: Sequence[Mapping[str, Any]], metric: HarnessMetric) -> Mapping[str, Any] | None:
    wanted = metric.filter or _NO_FILTER
    return next((row for row in rows if row.get("filter", _NO_FILTER) == wanted), None)


def _measures(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[HarnessMetric]
) -> Iterator[tuple[str, Measure]]:
    for metric in metrics:
        value = _value(_row(rows, metric), metric.name)
        if value is not None:
            yield metric.label, Measure(value)


def _is_binary(documents: Iterable[Sequence[Mapping[str, Any]]], headline: HarnessMetric) -> bool:
    return all(_value(_row(rows, headline), headline.name) in {0.0, 1.0} for rows in documents)


def _outcome(rows: Sequence[Mapping[str, Any]], headline: HarnessMetric) -> Outcome:
    row = _row(rows, headline)
    if _value(row, headline.name) == 1.0:
        return Outcome.CORRECT
    if row and row.get("truncated"):
        return Outcome.TRUNCATED
    read = row.get("filtered_resps") if row else None
    return Outcome.UNPARSABLE if read == [_UNREADABLE] else Outcome.WRONG


def _prompt(row: Mapping[str, Any]) -> str:
    """The text, or the messages of a chat, each under its role."""
    context = _context(row)
    if isinstance(context, str):
        return context
    try:
        messages = msgspec.json.decode(context[0])
        return "\n\n".join(f"{one['role']}:\n{one['content']}" for one in messages)
    except (msgspec.DecodeError, LookupError, TypeError):
        return str(context)


def _context(row: Mapping[str, Any]) -> Any:
    requests = row.get("arguments") or [[""]]
    return requests[0][0] if requests[0] else ""


def _continuations(row: Mapping[str, Any]) -> list[str] | None:
    """What was chosen from, for choices; None for written answers."""
    requests = row.get("arguments") or []
    if requests and all(len(one) > 1 and isinstance(one[1], str) for one in requests):
        return [one[1] for one in requests]
    return None


def _answer(row: Mapping[str, Any]) -> str | None:
    """The written answer, or the likeliest continuation."""
    answers = [one[0] for one in row.get("resps") or () if one]
    continuations = _continuations(row)
    if continuations is None:
        return answers[0] if answers and isinstance(answers[0], str) else None
    likelihoods = [one[0] for one in answers if isinstance(one, list) and one]
    if len(likelihoods) != len(continuations) or len(continuations) < 2 or None in likelihoods:
        return None
    return continuations[likelihoods.index(max(likelihoods))]


def _target(row: Mapping[str, Any]) -> str | None:
    target = row.get("target")
    continuations = _continuations(row)
    if isinstance(target, int) and continuations and 0 <= target < len(continuations):
        return continuations[target]
    return None if target is None else str(target)
