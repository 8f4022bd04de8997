"""The matches of an experiment as HTML, without scripts or external resources."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import jinja2
import msgspec
from markupsafe import Markup

from enginehouse.report.svg_plot import ticks
from enginehouse.report.visible_text import visible
from enginehouse.results.replay import MatchReplay
from enginehouse.store.files import write_whole

LARGEST_PAGE = 24_000_000  # characters of matches: some 300 of 5 against 5 for 10 rounds
_MOST_MATCHES = 1000
_SOURCES = {
    "majority": "by a majority of the votes",
    "tie": "the votes were tied",
    "default": "no valid answer",
    "single": "decided alone",
    "script": "by a script",
    "human": "by a person",
}
_WIDTH, _HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 130, 14, 40
_DASHES = ("", "7 4", "2 3", "10 3 2 3")


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """A match in the list."""

    match: int
    pairing: str
    failed: bool
    scores: str
    total: str
    choices: tuple[str, ...]


def write_replay(
    matches: Iterable[MatchReplay],
    path: Path,
    *,
    title: str,
    subtitle: str,
    largest: int = LARGEST_PAGE,
) -> tuple[Path, ...]:
    """Write the page to `path`, and what does not fit to path-2, path-3 and so on beside it.

    A page has up to 1,000 matches with up to `largest` characters of HTML, but at least one match;
    only one page is in memory. Returns the files. Raises StoreError. Blocking.
    """
    files: list[Path] = []
    rows: list[_Row] = []
    parts: list[str] = []
    size = 0
    template = _PAGES.get_template("replay_match.html")

    def named(number: int) -> Path:
        return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

    def finish_page(*, more: bool) -> None:
        number = len(files) + 1
        page = _PAGES.get_template("replay.html").render(
            title=title,
            subtitle=subtitle,
            page=number,
            rows=rows,
            matches=Markup("".join(parts)),  # noqa: S704 - rendered by a template that escapes
            previous=named(number - 1).name if files else None,
            next=named(number + 1).name if more else None,
        )
        write_whole(named(number), page.encode())
        files.append(named(number))

    for match in matches:
        part = template.render(
            match=match,
            scores=Markup(score_svg(match)),  # noqa: S704 - texts are escaped in it
            sources=_SOURCES,
            number=_number,
        )
        if len(rows) == _MOST_MATCHES or (rows and size + len(part) > largest):
            finish_page(more=True)
            rows, parts, size = [], [], 0
        rows.append(_row(match))
        parts.append(part)
        size += len(part)
    finish_page(more=False)
    return tuple(files)


def score_svg(match: MatchReplay) -> str:
    """Every seat's score after each round, as an SVG element."""
    return "".join(_score_parts(match))


def _row(match: MatchReplay) -> _Row:
    return _Row(
        match=match.match,
        pairing=match.pairing,
        failed=match.failure is not None,
        scores=", ".join(f"{seat} {_number(score)}" for seat, score in match.scores.items()),
        total=_number(match.total),
        choices=tuple(
            "".join(s.action[:1] for turn in match.turns for s in turn.seats if s.seat == seat)
            for seat in match.teams
        ),
    )


def _number(value: float) -> str:
    return f"{value:z,g}"


def _score_parts(match: MatchReplay) -> Iterator[str]:
    seats = list(match.teams)
    lines = {seat: [0.0, *(turn.scores[seat] for turn in match.turns)] for seat in seats}
    rounds = len(match.turns)
    low, high = min(map(min, lines.values())), max(map(max, lines.values()))
    if low == high:
        low, high = low - 1, high + 1
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def x(number: float) -> float:
        return _LEFT + number / max(rounds, 1) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    ends = ", ".join(f"{seat} {_number(values[-1])}" for seat, values in lines.items())
    name = f"scores-{match.match}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="{name}" font-family="system-ui, sans-serif" font-size="12" '
        'fill="currentColor">'
        f'<title id="{name}">Scores after each round; at the end {escape(visible(ends))}</title>'
    )
    for value in ticks(low, high, most=4):
        yield f'<path d="M{_LEFT} {y(value):.1f}H{right}" style="stroke:var(--grid, #d0d4da)"/>'
        yield (
            f'<text x="{_LEFT - 8}" y="{y(value):.1f}" dy="0.35em" text-anchor="end">'
            f"{_number(value)}</text>"
        )
    for number in range(0, rounds + 1, math.ceil((rounds + 1) / 15)):
        yield (f'<text x="{x(number):.1f}" y="{bottom + 18}" text-anchor="middle">{number}</text>')
    yield f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">round</text>'
    places = _apart([y(values[-1]) for values in lines.values()])
    for n, (seat, values) in enumerate(lines.items()):
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        yield (
            f'<polyline points="{points}" fill="none" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[n % len(_DASHES)]}" '
            'style="stroke:var(--line, #1d5fbf)"/>'
            f'<text x="{right + 8}" y="{places[n]:.1f}" dy="0.35em">{escape(visible(seat[:16]))} '
            f"{_number(values[-1])}</text>"
        )
    yield "</svg>"


def _apart(heights: list[float]) -> list[float]:
    """Heights of labels, moved down as far as is needed so that they do not overlap."""
    placed = list(heights)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + 14)
    return placed
