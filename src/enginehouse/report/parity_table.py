"""What `enginehouse parity` found."""

from __future__ import annotations

import sys
from typing import IO

from rich.text import Text

from enginehouse.report.terminal import make_console
from enginehouse.results.parity import ParityReport


def print_parity(report: ParityReport, *, file: IO[str] | None = None) -> None:
    """Print the differences, the importance ratios and the verdict."""
    console = make_console(file or sys.stdout)
    found = report.parity
    model = f"{report.model}+{report.adapter}" if report.adapter else report.model
    engine = f"{report.engine} {report.engine_version or ''}".strip()
    title = f"{model}: {engine} ({report.engine_dtype}) and transformers ({report.reference_dtype})"
    console.print(Text(title, style="bold"))
    lines = {
        "tokens": f"{found.tokens:,}",
        "difference": f"mean {found.mean:.3g}, largest {found.largest:.3g} nats (text "
        f"{found.sequence + 1}, token {found.token + 2})",
        "importance ratio": f"mean {found.ratio_mean:.4f}, {found.ratio_least:.3f} to "
        f"{found.ratio_most:.3f}; {100 * found.clipped:.1f} % outside 0.8 to 1.2",
    }
    for name, says in lines.items():
        console.print(Text(f"{name:<18}{says}"), soft_wrap=True)
    sign, style = ("at most", "green") if report.agrees else ("above", "red")
    verdict = "they agree" if report.agrees else "they do not agree"
    text = f"{'verdict':<18}{verdict}: the mean is {sign} {report.threshold:g} nats"
    console.print(Text(text, style=style), soft_wrap=True)
