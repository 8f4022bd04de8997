"""Summarises a run's journal: the report, and single samples. Reads only the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from enginehouse.core.errors import ConfigurationError, NoHeadlineError
from enginehouse.core.incidents import deaths_in_words
from enginehouse.core.reasoning import ReasoningUse
from enginehouse.core.sampler import Provenance
from enginehouse.evaluation.at_k import choose_ks, figure_of, figures_at_k
from enginehouse.evaluation.ledger import (
    ASKED,
    CODES,
    FAILED,
    UNSCORED,
    Ledger,
    TaskLedger,
    read_ledger,
)
from enginehouse.evaluation.records import (
    DatasetRecord,
    EvaluationSpec,
    Record,
    SampleRecord,
    ScoreRecord,
    TaskSpec,
    ToolUse,
)
from enginehouse.results.summary import (
    Cost,
    Figure,
    HarnessWork,
    Reasoning,
    Report,
    SampleView,
    TaskReport,
    Throughput,
)
from enginehouse.store.journal import read_journal
from enginehouse.store.runs import Run
from enginehouse.tasks.base import Outcome

_SAME: Final = 1e-6  # two computations of one figure
_SAMPLING: Final = ("temperature", "top_p", "top_k", "max_tokens", "system")


def summarise(run: Run, *, at_k: Sequence[int] | None = None) -> Report:
    """The report of a run, finished or not. Blocking.

    Headline: correct / (all - failed - unscored), with unparsable and truncated answers in the
    denominator. Metrics: Σ value / Σ weight over the same samples. Intervals at 95 %: see
    `statistics.interval_of_ratio`. `at_k` None: the powers of two up to the samples per item, if
    those are several. Raises StoreError, and ConfigurationError for a k above them.
    """
    ledger = read_ledger(run.journal_path)
    spec = ledger.header.spec if ledger.header else None
    records = [session.record for session in ledger.sessions.values()]
    throughput = _throughput(ledger)
    return Report(
        run=run.info.id,
        folder=str(run.folder),
        model=records[-1].provenance.model if records else run.info.model,
        complete=spec is not None and all(ledger.is_whole(task.name) for task in spec.tasks),
        seed=spec.seed if spec else 0,
        temperature=spec.temperature if spec else 0.0,
        tasks=tuple(_task_report(t, ledger, spec, at_k) for t in ledger.tasks.values())
        if spec
        else (),
        throughput=throughput,
        provenance=_answerers(ledger),
        incidents=run.info.incidents,
        notes=(*_notes(ledger, spec), *deaths_in_words(run.info.incidents)),
        cost=_cost(throughput, spec),
        judges=tuple(judges_of(ledger, *ledger.tasks)) or msgspec.UNSET,
    )


def require_headlines(report: Report) -> None:
    """Raise NoHeadlineError if a task of a complete run has no headline."""
    without = [task for task in report.tasks if task.headline is None and not task.is_group]
    if without:
        again = []
        if any(task.outcomes.get(Outcome.FAILED) for task in without):
            again.append(
                f"`enginehouse resume {report.run} --retry-failed` asks the failed samples again"
            )
        if any(t.outcomes.get(Outcome.UNSCORED) and t.harness is msgspec.UNSET for t in without):
            again.append(f"`enginehouse rescore {report.run}` scores all answers again")
        if not again:
            again.append(f"`enginehouse resume {report.run}` asks the missing samples")
        raise NoHeadlineError(
            f"no score for {', '.join(task.task for task in without)}",
            why="; ".join(f"{task.task}: {task.no_headline}" for task in without),
            fix=f"`enginehouse show {report.run} --sample N` shows one; once the cause is fixed, "
            + ", and ".join(again),
        )


def find_sample(run: Run, number: int) -> SampleView:
    """A sample by its number from 1, counted through tasks, then items, then repeats.

    Raises ConfigurationError for a number that the run does not have or has not asked yet, and
    StoreError. Blocking: reads the whole journal.
    """
    ledger = read_ledger(run.journal_path)
    total = sum(len(task.states) for task in ledger.tasks.values())
    if not 1 <= number <= total:
        raise ConfigurationError(f"run {run.info.id} has samples 1 to {total}, not {number}")
    index = number - 1
    for task in ledger.tasks.values():
        if index < len(task.states):
            break
        index -= len(task.states)
    sample, score = _read_sample(run, task, index)
    if sample is None:
        raise ConfigurationError(
            f"sample {number} of run {run.info.id} has not been asked yet",
            fix=f"`enginehouse resume {run.info.id}` asks it",
        )
    failure = sample.failure or (score.failure if score else None)
    outcome = score.outcome.value if score else None
    return SampleView(
        number=number,
        total=total,
        task=sample.task,
        item=sample.item,
        repeat=sample.repeat,
        requests=sample.requests,
        responses=sample.responses,
        loglikelihoods=None
        if sample.continuations is None
        else tuple(c.loglikelihood for c in sample.continuations),
        outcome=Outcome.FAILED.value if sample.failure else outcome,
        answer=score.answer if score else None,
        measures={n: m.value for n, m in score.measures.items()} if score else {},
        tool_use=_tool_lines(sample.tool_use) if sample.tool_use else (),
        failure=f"{failure.error} ({failure.stage}): {failure.message}" if failure else None,
        judge_request=score.judgement.request if score and score.judgement else None,
        judge_response=score.judgement.response if score and score.judgement else None,
        exchange=sample.exchange,
    )


def _read_sample(
    run: Run, task: TaskLedger, index: int
) -> tuple[SampleRecord | None, ScoreRecord | None]:
    """The latest sample of a task at an index, and its score."""
    sample: SampleRecord | None = None
    score: ScoreRecord | None = None
    for entry in read_journal(run.journal_path, Record):
        record = entry.record
        if isinstance(record, DatasetRecord) and record.harness is not None:
            if record.task == task.record.task:  # it replaces the samples before it
                sample, score = None, None
            continue
        if not isinstance(record, (SampleRecord, ScoreRecord)):
            continue
        if record.task != task.record.task or not task.is_at(record, index):
            continue
        if isinstance(record, SampleRecord):
            sample, score = record, None
        else:
            score = record
    return sample, score


def _tool_lines(use: ToolUse) -> tuple[str, ...]:
    """A line for each attempt and each call."""
    attempts = [
        f"{a.step}: {a.outcome or 'not supported'}" + (f", {a.why}" if a.why else "")
        for a in use.attempts
    ]
    calls = [
        f"call {call.id}: {call.name} {msgspec.json.encode(call.arguments).decode()}"
        for call in use.calls
    ]
    return (*attempts, *calls)


def _task_report(
    task: TaskLedger, ledger: Ledger, spec: EvaluationSpec, at_k: Sequence[int] | None
) -> TaskReport:
    record = task.record
    shape = (record.items, record.samples)
    scored = task.counted()
    ks = choose_ks(record, spec, at_k)
    why_not = why_no_headline(task, spec.max_failed)
    headline = None if why_not else _headline(task)
    metrics = {}
    for name, column in sorted(task.measures.items()):
        weights = np.where(scored, column.weights.reshape(shape), 0.0)
        if (figure := figure_of(column.values.reshape(shape), weights)) is not None:
            metrics[name] = figure
    if record.harness is not None:
        metrics.pop(record.headline, None)  # it is the headline
    return TaskReport(
        task=record.task,
        version=record.version,
        headline_name=record.headline,
        headline=headline,
        no_headline=why_not,
        metrics=metrics,
        outcomes=task.outcomes(),
        samples=len(task.states),
        items=record.items,
        samples_per_item=record.samples,
        full_size=record.full_size,
        subset=record.subset,
        source=record.source,
        licence=record.licence,
        digest=record.digest,
        at_k=() if why_not or task.is_measured else tuple(figures_at_k(task, k) for k in ks),
        reasoning=_reasoning(task, spec),
        settings=_own_settings(record, spec) or msgspec.UNSET,
        judge=", ".join(p.model for p in judges_of(ledger, record.task)) or msgspec.UNSET,
        harness=record.harness or msgspec.UNSET,
    )


def _headline(task: TaskLedger) -> Figure | None:
    """The share of correct samples; of a measured task the measure of that name, if it has one.

    Where the samples do not allow either, it is the harness's own figure, without an interval.
    """
    record = task.record
    shape = (record.items, record.samples)
    scored = task.counted()
    figure: Figure | None = None
    if not task.is_measured:
        correct = task.state_table() == CODES[Outcome.CORRECT]
        figure = figure_of(correct.astype(float), scored.astype(float))
    elif (column := task.measures.get(record.headline)) is not None:
        weights = np.where(scored, column.weights.reshape(shape), 0.0)
        figure = figure_of(column.values.reshape(shape), weights)
    if figure is not None or record.harness is None:
        return figure
    own = record.harness.figure(record.headline)
    return None if own is None else Figure(value=own.value, interval=None)


def judges_of(ledger: Ledger, *tasks: str) -> list[Provenance]:
    """Every different judge of the tasks' answers, in order."""
    ids = sorted({number for task in tasks for number in ledger.tasks[task].judges})
    judges: list[Provenance] = []
    for number in ids:
        if (provenance := ledger.judges[number].provenance) not in judges:
            judges.append(provenance)
    return judges


def _reasoning(task: TaskLedger, spec: EvaluationSpec) -> Reasoning | msgspec.UnsetType:
    column = task.reasoning
    if column is None or not (answers := int(np.count_nonzero(column.words))):
        return msgspec.UNSET
    return Reasoning(
        answers=answers,
        mean_words=float(column.words.sum()) / answers,
        unfinished=int((~column.finished).sum()),
        scored=settings_for(task.record, spec).reasoning is ReasoningUse.KEEP,
    )


def settings_for(record: DatasetRecord, spec: EvaluationSpec) -> TaskSpec:
    """The settings of a task in the journal: those of its group, if it is a part of one."""
    group = record.harness.part_of if record.harness else None
    return spec.settings_of(group or record.task)


def _own_settings(record: DatasetRecord, spec: EvaluationSpec) -> dict[str, float | int | str]:
    settings = settings_for(record, spec)
    return {
        name: value
        for name in _SAMPLING
        if (value := getattr(settings, name)) is not None and value != getattr(spec, name)
    }


def why_no_headline(task: TaskLedger, max_failed: float) -> str | None:
    """Why the scores so far give no headline; None if they do."""
    if task.record.harness is not None and not task.states:
        return None  # a group's samples are those of its parts
    done = sum(task.counts[ASKED + 1 :])
    failed, unscored = task.counts[FAILED], task.counts[UNSCORED]
    without = failed + unscored
    if not done:
        return "no sample was asked and scored yet"
    what = " or ".join(
        word for word, count in (("failed", failed), ("could not be scored", unscored)) if count
    )
    if without == done:
        return f"all {done:,} samples {what}, {_commonest(task)}"
    if without / done > max_failed:
        return (
            f"{without:,} of {done:,} samples {what} ({without / done:.1%}), "
            f"more than the {max_failed:.1%} allowed; {_commonest(task)}"
        )
    return None


def _commonest(task: TaskLedger) -> str:
    """The commonest error of failed samples, or reason of unscored ones, whichever are more."""
    if task.counts[FAILED] >= task.counts[UNSCORED]:
        return f"most of them with {task.failures.most_common(1)[0][0]}"
    return f"commonest reason: {task.unscored.most_common(1)[0][0]}"


def _answerers(ledger: Ledger) -> tuple[Provenance, ...]:
    """Every different provenance of an answer, in order."""
    provenances: list[Provenance] = []
    for session in ledger.sessions.values():
        if session.answered and session.record.provenance not in provenances:
            provenances.append(session.record.provenance)
    return tuple(provenances)


def _throughput(ledger: Ledger) -> Throughput:
    sessions = list(ledger.sessions.values())
    harnesses = [task.record.harness for task in ledger.tasks.values() if task.record.harness]
    wall = sum(s.end - s.begin for s in sessions if s.requests) + sum(h.seconds for h in harnesses)
    requests = sum(s.requests for s in sessions) + sum(h.requests for h in harnesses)
    prompt = sum(s.prompt_tokens for s in sessions) + sum(h.prompt_tokens for h in harnesses)
    generated = sum(s.generated_tokens for s in sessions)
    generated += sum(h.generated_tokens for h in harnesses)
    return Throughput(
        wall_seconds=wall,
        requests=requests,
        prompt_tokens=prompt,
        generated_tokens=generated,
        requests_per_second=requests / wall if wall else None,
        prompt_tokens_per_second=prompt / wall if wall else None,
        generated_tokens_per_second=generated / wall if wall else None,
    )


def _cost(throughput: Throughput, spec: EvaluationSpec | None) -> Cost | msgspec.UnsetType:
    prices = spec.prices if spec else None
    if prices is None:
        return msgspec.UNSET
    asked = throughput.prompt_tokens * prices.input / 1e6
    made = throughput.generated_tokens * prices.output / 1e6
    return Cost(input=asked, output=made, total=asked + made)


def _reasoning_note(task: str, reasoning: Reasoning) -> str:
    note = (
        f"{task}: {reasoning.answers:,} answers have reasoning, {reasoning.mean_words:,.0f} words "
        f"on average, {'scored with them' if reasoning.scored else 'left out of the scoring'}"
    )
    if reasoning.unfinished:
        note += f"; {reasoning.unfinished:,} ended before it did"
    return note


def _harness_notes(task: TaskLedger, harness: HarnessWork) -> list[str]:
    record, notes = task.record, []
    own = harness.figure(record.headline)
    ours = _headline(task)
    if own and ours and abs(own.value - ours.value) > _SAME:
        notes.append(
            f"{record.task}: {harness.name} reports {own.value:.4g} as {record.headline}, its "
            f"samples give {ours.value:.4g}"
        )
    if harness.truncated:
        notes.append(
            f"{record.task}: {harness.truncated:,} of {len(task.states):,} answers were cut off at "
            f"the token limit, and {harness.name} scored what there was of them"
        )
    if harness.shortened:
        notes.append(
            f"{record.task}: {harness.name} cut off the beginning of {harness.shortened:,} of "
            f"{len(task.states):,} prompts, which were longer than the model takes"
        )
    if harness.replayed:
        notes.append(
            f"{record.task}: {harness.replayed:,} of {harness.requests + harness.replayed:,} "
            "requests were answered from what had been recorded before"
        )
    return notes


def _task_notes(task: TaskLedger, spec: EvaluationSpec | None) -> list[str]:
    notes = []
    record = task.record
    settings = settings_for(record, spec) if spec else None
    if record.subset and not (record.harness and record.harness.parts):  # a group's parts say it
        of = f"{record.full_size:,}" if record.full_size is not None else "an unknown number of"
        notes.append(f"{record.task}: a subset, {record.items:,} of {of} items")
    if settings and not record.harness and record.samples < (settings.samples or 1):
        notes.append(f"{record.task}: asked once per item, its log-likelihoods do not vary")
    if settings and not record.harness and settings.temperature == 0 and record.samples > 1:
        notes.append(
            f"{record.task}: {record.samples} samples per item at temperature 0 differ only "
            "by the engine's own nondeterminism"
        )
    if spec and isinstance(reasoning := _reasoning(task, spec), Reasoning):
        notes.append(_reasoning_note(record.task, reasoning))
    if count := task.counts[UNSCORED]:
        correct = task.counts[CODES[Outcome.CORRECT]]
        of_all = sum(task.counts[ASKED + 1 :]) - task.counts[FAILED]
        notes.append(
            f"{record.task}: {count:,} of {of_all:,} answers could not be scored and are left "
            f"out (commonest reason: {task.unscored.most_common(1)[0][0]}); with them the "
            f"score would lie between {correct / of_all:.1%} "
            f"and {(correct + count) / of_all:.1%}"
        )
    if record.harness:
        notes += _harness_notes(task, record.harness)
    if missing := task.missing:
        notes.append(f"{record.task}: {missing:,} samples are missing, the run is incomplete")
    return notes


def _notes(ledger: Ledger, spec: EvaluationSpec | None) -> list[str]:
    notes = [note for task in ledger.tasks.values() for note in _task_notes(task, spec)]
    if spec:
        notes += [
            f"{task.name}: {task.harness} has not finished it, the run is incomplete"
            for task in spec.foreign
            if task.name not in ledger.tasks
        ]
    notes += [
        f"{end.task}: its harness did not finish it, {end.at:%Y-%m-%d %H:%M} UTC: "
        f"{end.failure.message}"
        for end in ledger.harness_ends
    ]
    if not all(session.record.seeded for session in ledger.sessions.values()):
        notes.append("the engine does not support seeds: the same samples cannot be drawn again")
    notes += [
        f"the journal's end was broken, and repaired {repair.at:%Y-%m-%d %H:%M} UTC: "
        f"{repair.size:,} bytes were moved to {repair.kept}"
        for repair in ledger.repairs
    ]
    engines = {
        (s.record.provenance.engine_version, s.record.provenance.weights_digest)
        for s in ledger.sessions.values()
        if s.answered
    }
    if len(engines) > 1:
        notes.append("the answers come from different engine versions or weights: see provenance")
    return notes
