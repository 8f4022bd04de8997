"""A curve's figures as text, the same on the terminal and on the page."""

from __future__ import annotations

from enginehouse.results.curve import Against, Curve, CurvePoint, TaskPoint

LEGEND = (
    "Differences are in points, on the same items and seeds, with 95 % intervals that are not "
    "corrected for the number of checkpoints. The best so far was chosen by its score, which "
    "chance flatters: a difference from it is a hint, not a test."
)


def step_text(point: CurvePoint) -> str:
    """The step, or a dash."""
    return "-" if point.step is None else f"{point.step:,}"


def score_text(point: TaskPoint) -> str:
    """72.0%, or none."""
    return "none" if point.score is None else f"{point.score.value:.1%}"


def interval_text(point: TaskPoint) -> str:
    """58.3% to 82.5%, or why there is none."""
    if point.score is None:
        return point.no_score or ""
    interval = point.score.interval
    return "too few items" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"


def difference_text(against: Against | None) -> str:
    """+12.0 (+3.1 to +20.2), in points; the reason where there is none."""
    if against is None:
        return "-"
    if against.result is None:
        return against.why or "none"
    bounds = ""
    if (interval := against.result.interval) is not None:
        bounds = f" ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
    return f"{100 * against.result.difference:+.1f}{bounds}"


def p_text(against: Against | None) -> str:
    """0.012, < 0.001 or a dash."""
    if against is None or against.result is None or against.result.p_value is None:
        return "-"
    value = against.result.p_value
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def line(point: CurvePoint) -> str:
    """Everything about a point in one line."""
    step = f"step {point.step:,}: " if point.step is not None else ""
    if point.failure is not None:
        why = "; ".join(part.strip() for part in point.failure.splitlines())
        return f"{step}{point.name} failed: {why}"
    parts = []
    for task in point.tasks:
        text = f"{task.task} {score_text(task)} ({interval_text(task)})"
        for against, what in ((task.from_base, "the base"), (task.from_best, "the best so far")):
            if against is not None:
                named = what if against is task.from_base else f"{what} ({against.name})"
                p = f", p {p_text(against)}" if against.result else ""
                text += f", from {named} {difference_text(against)}{p}"
        parts.append(text)
    return f"{step}{point.name}: {'; '.join(parts)}"


def summary(curve: Curve, task: str) -> str:
    """What a plot of a task shows, for readers who cannot see it."""
    scored = [(p, t) for p in curve.points if (t := p.of(task)) is not None and t.score]
    failed = sum(point.failure is not None for point in curve.points)
    parts = []
    if curve.base and (base := curve.base.of(task)) and base.score:
        parts.append(f"the base {curve.base.name} has {score_text(base)} ({interval_text(base)})")
    if scored:
        last, at_last = scored[-1]
        best, at_best = max(scored, key=lambda pair: pair[1].score.value if pair[1].score else 0)
        parts.append(f"the last of {len(scored)}, {last.name}, {score_text(at_last)}")
        parts.append(f"the best, {best.name}, {score_text(at_best)} ({interval_text(at_best)})")
    if failed:
        parts.append(f"{failed} could not be evaluated")
    text = "; ".join(parts) or "nothing has been evaluated yet"
    return text[0].upper() + text[1:] + "."
