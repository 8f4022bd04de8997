"""Reports, samples and lists of runs as a terminal shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import IO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from enginehouse.core.messages import ChatPrompt, Prompt, TextPrompt
from enginehouse.core.sampler import SampleRequest, SampleResponse
from enginehouse.report.visible_text import give_up, visible
from enginehouse.results.summary import (
    Cost,
    Figure,
    HarnessExchange,
    HarnessWork,
    Report,
    SampleView,
    TaskReport,
    Throughput,
)
from enginehouse.store.runs import RunInfo, RunStatus

_TABLE_WIDTH = 78
_OUTCOMES = ("correct", "wrong", "unparsable", "truncated", "unscored", "failed")
_STATUS_STYLES = {
    RunStatus.COMPLETE: "green",
    RunStatus.RUNNING: "cyan",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.FAILED: "red",
    RunStatus.UNREADABLE: "red",
}


class _SafeConsole(Console):
    """Escapes the control characters of what it prints, but not its own colours and movements."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as Console does, with the text's control characters escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Raise or become silent, as `write_plain` does."""
        del self._buffer[:]
        give_up(self.file, BrokenPipeError())


def make_console(file: IO[str]) -> Console:
    """A console that interprets no markup, and colours only on a terminal without NO_COLOR.

    Control characters in what it prints are escaped. Without a terminal, lines have COLUMNS
    characters, or 100.
    """
    width = None if file.isatty() or "COLUMNS" in os.environ else 100
    return _SafeConsole(file=file, width=width, markup=False, highlight=False, emoji=False)


def redraws(console: Console) -> bool:
    """Whether the console is a terminal that can move the cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def print_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    file: IO[str] | None = None,
    right: Iterable[int] = (),
) -> None:
    """Print a plain table, by default to standard output; the columns `right` are numbers."""
    table = make_table(*columns, right=right)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    make_console(file or sys.stdout).print(table)


def print_report(report: Report, *, file: IO[str] | None = None) -> None:
    """Print a report, by default to standard output."""
    make_console(file or sys.stdout).print(render_report(report), crop=False)


def print_runs(runs: Sequence[RunInfo], *, file: IO[str] | None = None) -> None:
    """Print the list of runs, by default to standard output."""
    make_console(file or sys.stdout).print(render_runs(runs))


def render_report(report: Report) -> RenderableType:
    """Scores with intervals, counts of every outcome, throughput, data, notes, and the folder."""
    parts: list[RenderableType] = [_title(report), Text()]
    if report.tasks:
        parts += [_Tasks(report.tasks), Text()]
    parts += [_facts(report)]
    if report.notes:
        notes = (
            Text(f"note: {note}", style="yellow", no_wrap=True, overflow="ignore")
            for note in report.notes
        )
        parts += [Text(), *notes]
    return Group(*parts)


def render_runs(runs: Sequence[RunInfo]) -> RenderableType:
    """One line per run."""
    if not runs:
        return Text("no runs yet; `enginehouse eval MODEL --task TASK` starts one")
    table = make_table("run", "status", "created (UTC)", "model", "tasks")
    for column in table.columns[:3]:  # an id must stay in one piece to be copied
        column.no_wrap = True
    for run in runs:
        table.add_row(
            Text(run.id),
            Text(run.status.value, style=_STATUS_STYLES[run.status]),
            Text(f"{run.created:%Y-%m-%d %H:%M}"),
            Text(run.model),
            Text(", ".join(run.tasks)),
        )
    return table


def render_sample(sample: SampleView) -> str:
    """One sample in full: prompts, answers and how they were scored. Plain text."""
    place = f"task {sample.task}, item {sample.item}, repeat {sample.repeat}"
    lines = [
        f"sample {sample.number} of {sample.total}: {place}",
        f"outcome: {sample.outcome or 'not scored yet'}",
    ]
    if sample.failure:
        lines.append(f"failure: {sample.failure}")
    if sample.answer is not None:
        lines.append(f"answer understood: {sample.answer}")
    for name, value in sample.measures.items():
        lines.append(f"{name}: {value:g}")
    lines += sample.tool_use
    if sample.requests:
        lines.append(_parameters(sample.requests[0]))
    lines += [_timing(response) for response in sample.responses]
    if sample.exchange is not None:
        lines += _exchange(sample.exchange)
    if sample.loglikelihoods is None:
        for request, response in zip_longest(sample.requests, sample.responses):
            lines += ["", *_prompt(request.prompt), *_tools(request)]
            lines += ["", *_completions(response)] if response else []
    else:
        for i, (request, loglikelihood) in enumerate(
            zip(sample.requests, sample.loglikelihoods, strict=True)
        ):
            lines += ["", f"continuation {i}: log-likelihood {loglikelihood:.4f}"]
            lines += _prompt(request.prompt)
    lines += _judgement(sample)
    return "\n".join(lines) + "\n"


def _title(report: Report) -> Text:
    title = Text.assemble(("Evaluation of ", "bold"), (report.model, "bold"))
    if not report.complete:
        title.append(" (incomplete)", style="bold red")
    return title


class _Tasks:
    """Two tables if they fit, otherwise a few lines per task."""

    def __init__(self, tasks: Sequence[TaskReport]) -> None:
        self._tasks = tasks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < _TABLE_WIDTH:
            for task in self._tasks:
                yield from _stacked(task)
            return
        yield _scores(self._tasks)
        for task in self._tasks:
            if task.no_headline:
                yield Text(f"{task.task} has no score: {task.no_headline}", style="red")
        for task in self._tasks:
            if task.at_k:
                yield Text()
                yield from _at_k(task)
        yield Text()
        yield _outcomes(self._tasks)


def _scores(tasks: Iterable[TaskReport]) -> Table:
    table = make_table("task", "metric", "score", "95 % interval", "method", right=(2, 3))
    for task in tasks:
        if task.is_group and task.headline is None:
            continue  # a name for several tasks
        for i, (metric, figure) in enumerate(_figures(task)):
            table.add_row(_name(task) if i == 0 else Text(), Text(metric), *_figure(figure))
        for metric, score, error in _own_figures(task):
            table.add_row(Text(), Text(metric), Text(score), Text(error), Text())
    return table


def _stacked(task: TaskReport) -> Iterable[Text]:
    yield _name(task)
    for metric, figure in _figures(task):
        score, interval, method = (str(cell) for cell in _figure(figure))
        yield Text(
            f"  {metric}: {score}, {interval} ({method})" if method else f"  {metric}: {score}"
        )
    for metric, score, error in _own_figures(task):
        yield Text(f"  {metric}: {score}" + (f" {error}" if error else ""))
    if task.no_headline:
        yield Text(f"  no score: {task.no_headline}", style="red")
    for row, cells in _at_k_rows(task):
        for at, figure in zip(task.at_k, cells, strict=True):
            score, interval, _ = (str(cell) for cell in _figure(figure))
            yield Text(f"  {row}, k = {at.k}: {score}, {interval}")
    yield from _left_out(task, indent="  ")
    names = _outcome_names([task])
    counts = ", ".join(f"{task.outcomes.get(name, 0):,} {name}" for name in names)
    yield Text(f"  {task.done:,} of {task.samples:,} samples: {counts}")


def _name(task: TaskReport) -> Text:
    return Text(task.task + (" (subset)" if task.subset else ""), style="bold")


def _figures(task: TaskReport) -> Iterable[tuple[str, Figure | None]]:
    yield task.headline_name, task.headline
    yield from task.metrics.items()


def _own_figures(task: TaskReport) -> Iterable[tuple[str, str, str]]:
    """A harness's own figures: what it is, its value, and the standard error."""
    if not isinstance(task.harness, HarnessWork):
        return
    for figure in task.harness.figures:
        style = ".1%" if 0 <= figure.value <= 1 else ".4g"
        error = figure.standard_error
        yield (
            f"{figure.name}, by {task.harness.name}",
            f"{figure.value:{style}}",
            "" if error is None else f"± {error:{style}} (its standard error)",
        )


def _figure(figure: Figure | None) -> tuple[Text, Text, Text]:
    if figure is None:
        return Text("none", style="red"), Text(), Text()
    interval = figure.interval
    few = "too few items" if figure.n is not None else "not of single samples"
    # A user's measure need not be a share: anything above 1 is not a percentage.
    style = ".1%" if max(figure.value, interval.high if interval else 0.0) <= 1 else ".3g"
    return (
        Text(f"{figure.value:{style}}"),
        Text(f"{interval.low:{style}} to {interval.high:{style}}" if interval else few),
        Text(interval.method if interval else ""),
    )


def _at_k(task: TaskReport) -> Iterable[RenderableType]:
    """A column per k, with the 95 % interval below each figure."""
    table = make_table(
        task.task, *(f"k = {at.k}" for at in task.at_k), right=range(1, len(task.at_k) + 1)
    )
    for name, figures in _at_k_rows(task):
        cells = []
        for figure in figures:
            score, interval, _ = _figure(figure)
            cells.append(Text("\n").join([score, Text(str(interval), style="dim")]))
        table.add_row(Text(name), *cells)
    yield table
    yield from _left_out(task)


def _at_k_rows(task: TaskReport) -> Iterable[tuple[str, list[Figure | None]]]:
    if task.at_k:
        yield "pass@k", [at.pass_at_k for at in task.at_k]
        yield "mean@k", [at.mean_at_k for at in task.at_k]
    for name in dict.fromkeys(name for at in task.at_k for name in at.best_at_k):
        yield f"best@k {name}", [at.best_at_k.get(name) for at in task.at_k]


def _left_out(task: TaskReport, *, indent: str = "") -> Iterable[Text]:
    for at in task.at_k:
        if at.left_out:
            left_out = f"{at.left_out:,} of {task.items:,} items are left out"
            yield Text(f"{indent}k = {at.k}: {left_out}; they have too few scores", style="yellow")


def _outcome_names(tasks: Iterable[TaskReport]) -> tuple[str, ...]:
    measured = any(task.outcomes.get("measured") for task in tasks)
    return (*_OUTCOMES, "measured") if measured else _OUTCOMES


def _outcomes(tasks: Sequence[TaskReport]) -> Table:
    names = _outcome_names(tasks)
    table = make_table("task", "samples", *names, right=range(1, 2 + len(names)))
    for task in tasks:
        if not task.samples:  # a group's samples are those of its parts
            continue
        of = "" if task.done == task.samples else f" of {task.samples:,}"
        cells = [Text(f"{task.outcomes.get(name, 0):,}") for name in names]
        for name in ("unscored", "failed"):
            if task.outcomes.get(name):
                cells[names.index(name)].stylize("bold red")
        table.add_row(Text(task.task), Text(f"{task.done:,}{of}"), *cells)
    return table


def _facts(report: Report) -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("throughput", throughput_line(report.throughput))]
    if isinstance(cost := report.cost, Cost):
        parts = f"${cost.input:,.4f} for prompts, ${cost.output:,.4f} for answers"
        rows.append(("cost", f"${cost.total:,.4f}: {parts}"))
    for task in report.tasks:
        size = f"{task.full_size:,}" if task.full_size is not None else "an unknown number of"
        repeats = f", {task.samples_per_item} samples each" if task.samples_per_item > 1 else ""
        items = f"{task.items:,} of {size} items{repeats}; "
        rows.append((task.task, _items(task, items) + _origin(task)))
    for p in report.provenance:
        engine = f"{p.engine or 'unknown engine'} {p.engine_version or ''}".strip()
        weights = f", weights {p.weights_digest[:12]}" if p.weights_digest else ""
        rows.append(("answered by", f"{engine} at {p.base_url}{weights}"))
        if p.dtype:
            reason = f": {p.dtype_reason}" if p.dtype_reason else ", as requested"
            rows.append(("computed in", f"{p.dtype}{reason}"))
    if isinstance(report.judges, tuple):
        rows += [("judged by", f"{p.model} at {p.base_url}") for p in report.judges]
    rows += [("sampling", line) for line in _sampling(report)]
    for task in report.tasks:
        if isinstance(task.settings, Mapping):
            own = ", ".join(f"{name} {value}" for name, value in task.settings.items())
            rows.append(("", f"{task.task}: {own}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    places = (("run", report.run), ("stored in", report.folder))
    return Group(table, *(whole_line(f"{name:<{width}}  ", value) for name, value in places))


def _sampling(report: Report) -> Iterator[str]:
    """How native tasks were sampled, and harness tasks, which get only what was set."""
    foreign = [isinstance(task.harness, HarnessWork) for task in report.tasks]
    if not all(foreign):
        yield f"seed {report.seed}, temperature {report.temperature:g}"
    if any(foreign):
        given = [f"seed {report.seed}"] if report.seed else []
        given += [f"temperature {report.temperature:g}"] if report.temperature else []
        own = f"{', '.join(given)}; the rest is their own" if given else "their own settings"
        yield f"harness tasks: {own}"


def _items(task: TaskReport, items: str) -> str:
    if isinstance(task.harness, HarnessWork) and task.harness.parts:
        return f"a group of {len(task.harness.parts)}; " + (items if task.items else "")
    return items


def _origin(task: TaskReport) -> str:
    """Which version of the task it is, and where its data come from."""
    known = [part for part in (task.source, task.licence) if part]
    if isinstance(task.harness, HarnessWork):
        of = f"version {task.version} of {task.harness.name} {task.harness.version}"
        return "; ".join([of, *known, f"configuration {task.digest[:12]}"])
    return "; ".join([f"version {task.version}", *known, f"sha256 {task.digest[:12]}"])


def whole_line(label: str, value: str) -> Text:
    """A line that is never folded, so that its value can be copied."""
    line = Text(no_wrap=True, overflow="ignore")
    return line.append(label, style="bold").append(value)


def throughput_line(throughput: Throughput) -> str:
    """Rates and totals of a run in one line."""
    t = throughput
    if not t.requests:
        return "no requests were answered"
    if not t.generated_tokens + t.prompt_tokens:
        return (
            f"{t.requests_per_second or 0:,.1f} requests/s ({t.requests:,} requests in "
            f"{t.wall_seconds:,.1f} s; the server does not report token counts)"
        )
    rates = (
        f"{t.generated_tokens_per_second or 0:,.0f} generated tokens/s, "
        f"{t.prompt_tokens_per_second or 0:,.0f} prompt tokens/s, "
        f"{t.requests_per_second or 0:,.1f} requests/s"
    )
    return (
        f"{rates} ({t.requests:,} requests, {t.generated_tokens:,} + {t.prompt_tokens:,} tokens "
        f"in {t.wall_seconds:,.1f} s)"
    )


def _judgement(sample: SampleView) -> list[str]:
    lines = []
    if sample.judge_request is not None:
        lines += ["", f"the judge was asked ({_parameters(sample.judge_request)}):"]
        lines += _prompt(sample.judge_request.prompt)
    if sample.judge_response is not None:
        lines += ["", f"its reply, {sample.judge_response.model}:"]
        lines += _completions(sample.judge_response)
    return lines


def _exchange(exchange: HarnessExchange) -> list[str]:
    lines = ["", f"[prompt]\n{exchange.prompt}"]
    if exchange.answer is not None:
        lines += ["", f"[answer]\n{exchange.answer}"]
    if exchange.target is not None:
        lines += ["", f"[target]\n{exchange.target}"]
    return lines


def _parameters(request: SampleRequest) -> str:
    p = request.parameters
    stop = f", stop {list(p.stop)}" if p.stop else ""
    return (
        f"sampling: seed {p.seed}, temperature {p.temperature:g}, top_p {p.top_p:g}, "
        f"top_k {p.top_k}, min_p {p.min_p:g}, repetition_penalty {p.repetition_penalty:g}, "
        f"presence_penalty {p.presence_penalty:g}, frequency_penalty {p.frequency_penalty:g}, "
        f"max_tokens {p.max_tokens}{stop}"
    )


def _timing(response: SampleResponse) -> str:
    t = response.timing
    first = f", first token after {t.first_token:.3f} s" if t.first_token is not None else ""
    return (
        f"answered by {response.model} in {t.elapsed:.3f} s{first}, attempts: {t.attempts}, "
        f"{response.prompt_tokens} prompt and {response.completion_tokens} generated tokens"
    )


def _prompt(prompt: Prompt) -> list[str]:
    if isinstance(prompt, ChatPrompt):
        return [f"[{m.role}]\n{m.content}" for m in prompt.messages]
    if isinstance(prompt, TextPrompt):
        return [f"[text]\n{prompt.text}"]
    return [f"[{len(prompt.token_ids)} tokens] {' '.join(map(str, prompt.token_ids))}"]


def _tools(request: SampleRequest) -> list[str]:
    names = ", ".join(tool.name for tool in request.tools)
    return [f"[tools, choice {request.tool_choice}]\n{names}"] if names else []


def _completions(response: SampleResponse) -> list[str]:
    lines = []
    for completion in response.completions:
        if completion.reasoning:
            lines.append(f"[reasoning]\n{completion.reasoning}")
        lines.append(f"[answer, finish reason {completion.finish_reason}]\n{completion.text}")
        lines += [f"[tool call {call.name}]\n{call.arguments}" for call in completion.tool_calls]
    return lines


def make_table(*columns: str, right: Iterable[int] = ()) -> Table:
    """A plain table without rows; the columns `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    numeric = set(right)
    for i, column in enumerate(columns):
        if i in numeric:  # a number broken over two lines cannot be read
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table
