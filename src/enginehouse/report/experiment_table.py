"""An experiment's figures on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from enginehouse.report.terminal import make_console, make_table, whole_line
from enginehouse.results.experiment import (
    Estimate,
    ExperimentReport,
    ExperimentWork,
    Measured,
    PairingReport,
    TeamDifference,
)
from enginehouse.statistics.intervals import Interval
from enginehouse.statistics.seeds import NO_DIFFERENCE

_LEGEND = (
    "Intervals are at 95 % and vary whole seeds (all matches with one seed together). Differences "
    "of shares are in points, on the same seeds. in place: one team instead of the other, in the "
    "same seat against the same team; head to head: in the same match. detectable: the smallest "
    "difference that one test (two-sided, level 0.05) finds with 80 % power. A figure without an "
    "interval has fewer than 5 seeds, a difference without one fewer than 6."
)
_RATINGS = (
    "Ratings are Bradley-Terry strengths on the Elo scale: 400 points are odds of 10 to 1 for the "
    "higher score. Every team is given one more tie with an average team."
)


def print_experiment(report: ExperimentReport, *, file: IO[str] | None = None) -> None:
    """Print a report, by default to standard output."""
    make_console(file or sys.stdout).print(render_experiment(report), crop=False)


def render_experiment(report: ExperimentReport) -> RenderableType:
    """Figures of teams and pairings, differences, ratings, how it was decided, work, notes."""
    ended = f"  {report.game}, {report.finished:,} of {report.planned:,} matches"
    parts: list[RenderableType] = [
        Text.assemble((f"Experiment {report.name}", "bold"), ended),
    ]
    if report.finished:
        if len(report.pairings) > 1:
            teams = [(team.team, team.figures) for team in report.teams]
            parts += [Text(), _Figures("team", teams, report)]
        for pairing in report.pairings:
            seats = [(f"{seat.seat}: {seat.team}", seat.figures) for seat in pairing.seats]
            parts += [Text(), _pairing_line(pairing), _Figures("seat", seats, report)]
    if report.differences:
        parts += [Text(), _Differences(report)]
    if report.ratings:
        parts += [Text(), _ratings(report)]
    parts += [Text(), _facts(report), Text(), Text(_LEGEND, style="dim")]
    if report.correction:
        corrected = f"p is corrected ({report.correction}); the intervals are not."
        parts.append(Text(corrected, style="dim"))
    if report.ratings:
        parts.append(Text(_RATINGS, style="dim"))
    if report.notes or report.failures:
        parts.append(Text())
    for failure in report.failures:
        failed = f"failed: {failure.count:,} with {failure.kind}, such as: {failure.example}"
        parts.append(Text(failed, style="red"))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(*parts)


class _Figures:
    """A row per measure and a column per team, or lines for each team if that is too wide."""

    def __init__(
        self,
        heading: str,
        columns: Sequence[tuple[str, Mapping[str, Estimate]]],
        report: ExperimentReport,
    ) -> None:
        self._heading = heading
        self._columns = columns
        self._measures = [m for m in report.measures if any(f[m.name].count for _, f in columns)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [
            [m.name, *(_estimate(figures, m) for _, figures in self._columns)]
            for m in self._measures
        ]
        names = [self._heading, *(name for name, _ in self._columns)]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        if sum(width + 2 for width in widths) > options.max_width:
            for number, name in enumerate(names[1:], start=1):
                yield Text(name, style="bold")
                yield from (Text(f"  {row[0]}: {row[number]}") for row in rows)
            return
        table = make_table(*names)
        for row in rows:
            table.add_row(*map(Text, row))
        yield table


def _estimate(figures: Mapping[str, Estimate], measure: Measured) -> str:
    """79.5% (76.5 to 82.6), in 74 of 80; or why there is no interval."""
    estimate, all_values = figures[measure.name], figures["score"].count
    if estimate.value is None:
        return "none"
    some = f", in {estimate.count:,} of {all_values:,}" if estimate.count < all_values else ""
    return f"{_with_interval(estimate, share=measure.share)}{some}"


def _with_interval(estimate: Estimate, *, share: bool) -> str:
    if estimate.value is None:
        return "none"
    value = _number(estimate.value, share=share)
    if estimate.no_interval == "too few seeds":
        return value
    return f"{value} ({_bounds(estimate.interval, share=share) or estimate.no_interval})"


def _number(value: float, *, share: bool) -> str:
    return f"{value:z.1%}" if share else f"{value:z,.4g}"


def _bounds(interval: Interval | None, *, share: bool) -> str:
    if interval is None:
        return ""
    if share:
        return f"{100 * interval.low:z.1f} to {100 * interval.high:z.1f}"
    return f"{interval.low:z,.4g} to {interval.high:z,.4g}"


def _pairing_line(pairing: PairingReport) -> Text:
    line = Text(pairing.pairing, style="bold")
    matches = f"{pairing.matches:,} match{'' if pairing.matches == 1 else 'es'}"
    total = f"  {matches}, total {_with_interval(pairing.total, share=False)}"
    line.append(total, style="not bold")
    if pairing.welfare is not None:
        share = _with_interval(pairing.welfare, share=True)
        welfare = f", welfare {share} of the most possible"
        line.append(welfare, style="not bold")
    return line


class _Differences:
    """A table for every two teams and way to compare them, or a line per measure."""

    def __init__(self, report: ExperimentReport) -> None:
        self._shares = {m.name for m in report.measures if m.share}
        self._p = "p (Holm)" if report.correction else "p"
        self._groups: dict[tuple[str, str, str], list[TeamDifference]] = {}
        for d in report.differences:
            self._groups.setdefault((d.first, d.second, d.comparison), []).append(d)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, ((first, second, comparison), group) in enumerate(self._groups.items()):
            if number:
                yield Text()
            yield Text(f"{second} - {first}, {comparison}", style="bold")
            names = ["measure", first, second, "difference", self._p, "detectable", "seeds"]
            rows = [_difference_row(d, share=d.measure in self._shares) for d in group]
            widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
            if sum(width + 2 for width in widths) > options.max_width:
                for row in rows:
                    cells = zip(names[1:], row[1:], strict=True)
                    yield Text(f"  {row[0]}: {'; '.join(f'{n} {cell}' for n, cell in cells)}")
                continue
            table = make_table(*names, right=range(1, len(names)))
            for row in rows:
                table.add_row(*map(Text, row))
            yield table


def _difference_row(difference: TeamDifference, *, share: bool) -> list[str]:
    result = difference.result
    scale, style = (100, "+z.1f") if share else (1, "+z.4g")
    interval = result.interval
    shown = f"{scale * result.difference:{style}}"
    if interval is not None:
        shown += f" ({scale * interval.low:{style}} to {scale * interval.high:{style}})"
    elif result.p_value is not None:
        shown += " (in every seed)"
    elif result.method == NO_DIFFERENCE:
        shown += " (no seed differs)"
    return [
        difference.measure,
        _number(result.first, share=share),
        _number(result.second, share=share),
        shown,
        _p(difference.p_corrected),
        "-" if result.detectable is None else f"{scale * result.detectable:{style[1:]}}",
        f"{result.pairs:,}",
    ]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _ratings(report: ExperimentReport) -> Table:
    table = make_table("team", "rating", "won, tied, lost")
    for rating in report.ratings:
        shown = f"{rating.rating.value:+z.0f}"
        if (interval := rating.rating.interval) is not None:
            shown += f" ({interval.low:+z.0f} to {interval.high:+z.0f})"
        elif rating.no_interval != "too few seeds":
            shown += f" ({rating.no_interval})"
        counts = f"{rating.wins:,}, {rating.ties:,}, {rating.losses:,}"
        table.add_row(Text(rating.team), Text(shown), Text(counts))
    return table


def _facts(report: ExperimentReport) -> Group:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    work = report.work
    rows = []
    for team in report.teams:
        counts = ", ".join(f"{count:,} by {how}" for how, count in team.decisions.items())
        invalid = f"; {team.invalid:,} of {team.asked:,} answers invalid" if team.asked else ""
        rows.append((team.team, f"{team.agents}; decisions: {counts or 'none'}{invalid}"))
    if any(team.asked for team in report.teams):
        policies = ", ".join(f"{name}: {policy}" for name, policy in report.policies.items())
        rows.append(("policies", policies))
    if work.matches_per_hour is not None:
        played = f"{work.matches_per_hour:,.0f} matches per hour ({work.seconds:,.1f} s of play)"
        rows.append(("speed", played))
    if work.calls + work.replayed:
        rows.append(("calls", _calls(work)))
        tokens = f"{work.prompt_tokens:,} prompt and {work.completion_tokens:,} generated"
        if work.prefix_cache_hits is None:
            cached = "hit rate of the prefix cache unknown"
        else:
            cached = f"{work.prefix_cache_hits:.1%} of prompt tokens found in the prefix cache"
        rows.append(("tokens", f"{tokens}; {cached}"))
    for answerer in report.answerers:
        p = answerer.provenance
        engine = f"{p.engine or 'unknown engine'} {p.engine_version or ''}".strip()
        digests = (("weights", p.weights_digest), ("adapter", p.adapter_digest))
        named = "".join(f", {what} {digest[:12]}" for what, digest in digests if digest)
        rows.append((answerer.model, f"{p.model} by {engine} at {p.base_url}{named}"))
    rows.append(("seed", f"{report.seed}"))
    width = max(len("stored in"), *(len(name) for name, _ in rows))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(value))
    places = (("run", report.run), ("stored in", report.folder))
    return Group(table, *(whole_line(f"{name:<{width}}  ", value) for name, value in places))


def _calls(work: ExperimentWork) -> str:
    further = (
        (work.failed_calls, "failed"),
        (work.replayed, "answered from another run's record"),
        (work.shortened, "without the oldest history, to fit the context"),
    )
    more = "".join(f", {count:,} {what}" for count, what in further if count)
    return f"{work.calls:,}{more}"
