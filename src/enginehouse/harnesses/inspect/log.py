"""Reads what payloads/inspect_eval.py copies of Inspect's logs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from enginehouse.harnesses.base import HarnessMetric, HarnessResult, HarnessSample
from enginehouse.tasks.base import Measure, Outcome

# What Inspect's scorers write for correct, partially correct, incorrect, and no answer.
_NO_ANSWER = "N"
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, _NO_ANSWER: 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_MEANS = ("accuracy", "mean")
_ERRORS = ("stderr", "bootstrap_stderr")
_NEAR = 1e-6  # a metric that is as near as this to the samples' mean is that mean
_TRUNCATED = ("max_tokens", "model_length")
_LONGEST = 100_000  # characters of a conversation that are kept
_LOCAL = re.compile(r"/|file:|~|\.")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Of an evaluation's settings, those that change what is measured.
_LIMITS = (
    "epochs_reducer",
    "message_limit",
    "token_limit",
    "turn_limit",
    "time_limit",
    "working_limit",
    "cost_limit",
)


class _Part(msgspec.Struct):
    """A part of a message: text, or a picture or the like."""

    type: str = ""
    text: str = ""


class _Call(msgspec.Struct):
    function: str = ""
    arguments: Any = None


class _Problem(msgspec.Struct):
    message: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] = ""
    tool_calls: list[_Call] | None = None
    function: str | None = None
    error: _Problem | None = None


class _Choice(msgspec.Struct):
    message: _Message = msgspec.field(default_factory=_Message)
    stop_reason: str | None = None


class _Output(msgspec.Struct):
    choices: list[_Choice] = []


class _Score(msgspec.Struct):
    value: Any = None


class _Sample(msgspec.Struct):
    id: int | str
    epoch: int
    input: str | list[_Message] = ""
    target: str | list[str] = ""
    messages: list[_Message] = []
    output: _Output = msgspec.field(default_factory=_Output)
    scores: dict[str, _Score] | None = None
    error: _Problem | None = None


class _Dataset(msgspec.Struct):
    name: str | None = None
    location: str | None = None
    samples: int | None = None
    sample_ids: list[int | str] | None = None


class _Evaluation(msgspec.Struct):
    task: str
    task_version: int | str = 0
    dataset: _Dataset = msgspec.field(default_factory=_Dataset)


class _Metric(msgspec.Struct):
    value: float | None = None


class _Scorer(msgspec.Struct):
    """Metrics of one scorer, or of one key of a scorer whose values are mappings."""

    name: str
    scorer: str = ""
    reducer: str | None = None
    metrics: dict[str, _Metric] = {}

    @property
    def title(self) -> str:
        """What tells its metrics from those of others."""
        title = self.scorer or self.name
        if self.name != title:
            title = f"{title}/{self.name}"
        return title if self.reducer in {None, "mean"} else f"{title}, {self.reducer}"

    def label(self, metric: str) -> str:
        """The metric's label, as HarnessMetric has it."""
        return f"{metric} ({self.title})"

    def figures(self) -> dict[str, float]:
        """Its metrics that have a value, without standard errors."""
        return {
            name: metric.value
            for name, metric in self.metrics.items()
            if name not in _ERRORS and metric.value is not None
        }

    def harness_metrics(self) -> list[HarnessMetric]:
        """Its figures, with the standard error where it states one."""
        errors = (self.metrics[name].value for name in _ERRORS if name in self.metrics)
        error = next(errors, None)
        figures = self.figures()
        return [
            HarnessMetric(
                name=name,
                value=value,
                standard_error=error if name in _MEANS or len(figures) == 1 else None,
                filter=self.title,
                higher_is_better=True if name == "accuracy" else None,
            )
            for name, value in figures.items()
        ]

    def score(self, sample: _Sample) -> Any:
        """Its value for a sample, as the scorer gave it; None without one."""
        scores = sample.scores or {}
        score = scores.get(self.scorer) or scores.get(self.name)
        if score is not None and isinstance(score.value, dict):
            return score.value.get(self.name)
        return None if score is None else score.value


class _Headline(msgspec.Struct):
    score: str = ""
    metric: str = ""
    reducer: str | None = None


class _Results(msgspec.Struct):
    scores: list[_Scorer] = []
    headline: _Headline | None = None


class _Log(msgspec.Struct):
    eval: _Evaluation
    results: _Results | None = None


class _Header(msgspec.Struct):
    """NUMBER.json. `package` and `file_digest` are None where the task is a file, or is not."""

    name: str
    log: _Log
    package: str | None = None
    file_digest: str | None = None


def read_result(folder: Path, *, number: int, version: str) -> HarnessResult:
    """What Inspect reported of the task with that number in a request."""
    text = (folder / f"{number}.json").read_bytes()
    header = msgspec.json.decode(text, type=_Header)
    with (folder / f"{number}.jsonl").open("rb") as lines:
        samples = [msgspec.json.decode(line, type=_Sample) for line in lines]
    evaluation = header.log.eval
    ids = [*(evaluation.dataset.sample_ids or []), *(sample.id for sample in samples)]
    positions = {key: number for number, key in enumerate(dict.fromkeys(map(str, ids)))}
    samples.sort(key=lambda sample: (positions[str(sample.id)], sample.epoch))
    results = header.log.results or _Results()
    headline = _headline(results)
    measures = _measures(results.scores, samples, headline=headline)
    return HarnessResult(
        task=header.name,
        harness="inspect",
        harness_version=version,
        task_version=str(evaluation.task_version),
        configuration_digest=_configuration_digest(msgspec.json.decode(text)),
        headline=headline.label if headline else "",
        metrics=[metric for scorer in results.scores for metric in scorer.harness_metrics()],
        samples=[
            HarnessSample(
                item=str(sample.id),
                position=positions[str(sample.id)],
                repeat=sample.epoch - 1,
                prompt=_prompt(sample),
                answer=None if sample.error else _answer(sample),
                target=_target(sample),
                outcome=outcome,
                measures={
                    label: Measure(value)
                    for label, values in measures.items()
                    if (value := values[number]) is not None
                },
                truncated=_is_truncated(sample),
                failure=sample.error.message if sample.error else None,
            )
            for number, (sample, outcome) in enumerate(
                zip(samples, _outcomes(headline, measures, samples), strict=True)
            )
        ],
        full_size=evaluation.dataset.samples,
        source=", ".join(filter(None, [header.package, _origin(evaluation.dataset)])),
    )


class _Chosen(msgspec.Struct, frozen=True):
    """The metric that stands for the whole task."""

    scorer: _Scorer
    metric: str

    @property
    def label(self) -> str:
        return self.scorer.label(self.metric)


def _headline(results: _Results) -> _Chosen | None:
    """The one that the task or Inspect names; versions that name none mean the first."""
    named = results.headline
    chosen = [
        _Chosen(scorer, name)
        for scorer in results.scores
        for name in scorer.figures()
        if named is None
        or (named.score, named.metric, named.reducer) == (scorer.name, name, scorer.reducer)
    ]
    return chosen[0] if chosen else None


def _measures(
    scorers: Sequence[_Scorer], samples: Sequence[_Sample], *, headline: _Chosen | None
) -> dict[str, list[float | None]]:
    """Each sample's share of those metrics that are means over the samples, by label."""
    measures = {}
    for scorer in scorers:
        values = [_number(scorer.score(sample)) for sample in samples]
        known = [value for value in values if value is not None]
        for name, figure in scorer.figures().items():
            is_headline = headline is not None and headline.label == scorer.label(name)
            if known and (is_headline or name in _MEANS) and abs(fmean(known) - figure) < _NEAR:
                measures[scorer.label(name)] = values
    return measures


def _outcomes(
    headline: _Chosen | None,
    measures: Mapping[str, Sequence[float | None]],
    samples: Sequence[_Sample],
) -> list[Outcome | None]:
    """Right or wrong, if the headline knows nothing else; None for each sample otherwise."""
    values = measures.get(headline.label) if headline else None
    if headline is None or values is None or not {*values} <= {0.0, 1.0, None}:
        return [None] * len(samples)
    return [
        None if sample.error else _outcome(value, headline.scorer.score(sample), sample)
        for value, sample in zip(values, samples, strict=True)
    ]


def _outcome(value: float | None, score: Any, sample: _Sample) -> Outcome:
    if value is None:
        return Outcome.UNSCORED
    if value:
        return Outcome.CORRECT
    if _is_truncated(sample):
        return Outcome.TRUNCATED
    return Outcome.UNPARSABLE if score == _NO_ANSWER else Outcome.WRONG


def _is_truncated(sample: _Sample) -> bool:
    choices = sample.output.choices
    return bool(choices) and choices[0].stop_reason in _TRUNCATED


def _number(score: Any) -> float | None:
    """As Inspect's own metrics read a score; None for one that is not a single number."""
    if isinstance(score, str):
        if score in _LETTERS:
            return _LETTERS[score]
        score = _WORDS.get(score.lower(), score)
        try:
            score = float(score)
        except ValueError:
            return None
    if not isinstance(score, bool | int | float) or not math.isfinite(score):
        return None
    return float(score)


def _prompt(sample: _Sample) -> str:
    """What the model was first asked, with what the task wrote around the item."""
    asked = sample.messages[: _first_answer(sample)]
    if not asked:
        asked = (
            [_Message(role="user", content=sample.input)]
            if isinstance(sample.input, str)
            else sample.input
        )
    return _conversation(asked)


def _answer(sample: _Sample) -> str:
    """The model's answer; a conversation, if there are calls of tools or several turns."""
    rest = sample.messages[_first_answer(sample) :]
    return _conversation(rest or [choice.message for choice in sample.output.choices[:1]])


def _first_answer(sample: _Sample) -> int:
    roles = [message.role for message in sample.messages]
    return roles.index("assistant") if "assistant" in roles else len(roles)


def _target(sample: _Sample) -> str:
    return sample.target if isinstance(sample.target, str) else "\n".join(sample.target)


def _conversation(messages: Sequence[_Message]) -> str:
    """For people to read: one message without its role, several with theirs."""
    if len(messages) == 1 and not messages[0].tool_calls:
        text = _text(messages[0])
    else:
        text = "\n\n".join(f"{_speaker(message)}: {_text(message)}" for message in messages)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[{len(text) - _LONGEST} characters are left out]\n{text[-half:]}"


def _speaker(message: _Message) -> str:
    return f"tool {message.function}" if message.role == "tool" else message.role


def _text(message: _Message) -> str:
    parts = [message.content] if isinstance(message.content, str) else map(_part, message.content)
    calls = (
        f"[calls {call.function}({msgspec.json.encode(call.arguments).decode()})]"
        for call in message.tool_calls or []
    )
    problem = f"[failed: {message.error.message}]" if message.error else ""
    return "\n".join(filter(None, [*parts, *calls, problem]))


def _part(part: _Part) -> str:
    """A part's text; a model's reasoning is left out."""
    if part.type == "text":
        return part.text
    return "" if part.type == "reasoning" else f"[{part.type}]"


def _origin(dataset: _Dataset) -> str | None:
    """Where the data is from: a name on the hub, not a place on this machine."""
    location = dataset.location
    return location if location and not _LOCAL.match(location) else dataset.name


def _configuration_digest(header: Mapping[str, Any]) -> str:
    """The SHA-256 of the task as Inspect resolved it, without what a run sets.

    With a task's own file, that file's content belongs to it.
    """
    log = header["log"]
    spec, plan = log["eval"], log.get("plan") or {}
    dataset = spec.get("dataset") or {}
    location = dataset.get("location")
    configuration = {
        "task": spec.get("task_registry_name") or spec["task"],
        "version": spec.get("task_version"),
        "arguments": spec.get("task_args"),
        "dataset": [
            dataset.get("name"),
            dataset.get("samples"),
            None if location and _LOCAL.match(location) else location,
        ],
        "steps": [plan.get("steps"), plan.get("finish")],
        "scorers": [spec.get("scorers"), spec.get("metrics")],
        "limits": {key: (spec.get("config") or {}).get(key) for key in _LIMITS},
        "file": header.get("file_digest"),
    }
    text = msgspec.json.encode(configuration, order="sorted").decode()
    return hashlib.sha256(_ADDRESS.sub("", text).encode()).hexdigest()
