"""enginehouse doctor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, VariantOption, VersionOption
from enginehouse.core.errors import ProvisioningError
from enginehouse.store.layout import Layout

if TYPE_CHECKING:
    from enginehouse.doctor.findings import Finding


def doctor(
    *,
    python: Annotated[
        Path | None,
        typer.Option("--python", help="Also check the engine environment of this Python."),
    ] = None,
    version: VersionOption = None,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Check this machine for problems. Exits with status 3 if there is one.

    Builds nothing and does not use the network.
    """
    console = Console(json=json)
    from enginehouse.doctor.checks import examine
    from enginehouse.doctor.findings import Verdict

    findings = run_async(
        examine(Layout.from_environment(), python=python, version=version, variant=variant)
    )
    console.result(findings, text=lambda: _print(findings, console))

    if any(finding.verdict is Verdict.PROBLEM for finding in findings):
        raise typer.Exit(ProvisioningError.exit_code)


def _print(findings: Sequence[Finding], console: Console) -> None:
    from enginehouse.doctor.findings import Verdict

    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        console.say(f"{finding.verdict:<7}  {finding.check:<{width}}  {finding.says}")
        if finding.fix:
            console.say(f"{'':<7}  {'':<{width}}  next: {finding.fix}")
    counts = Counter(finding.verdict for finding in findings)
    totals = (f"{kind}s: {counts[kind]}" for kind in (Verdict.PROBLEM, Verdict.WARNING))
    console.say(f"checks: {len(findings)}, {', '.join(totals)}")
