from __future__ import annotations

import io
from datetime import UTC, datetime

import msgspec
import pytest
from rich.console import Console
from tests.support.terminals import TerminalStream

from enginehouse.core.messages import ChatPrompt, Message, TokenPrompt
from enginehouse.core.sampler import (
    Completion,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.report.terminal import (
    make_console,
    print_report,
    print_runs,
    render_report,
    render_sample,
)
from enginehouse.results.summary import (
    AtK,
    Figure,
    HarnessWork,
    Report,
    SampleView,
    TaskReport,
    Throughput,
)
from enginehouse.statistics.intervals import wilson
from enginehouse.store.runs import RunInfo, RunStatus

TASK = TaskReport(
    task="gsm8k",
    version=1,
    headline_name="exact match",
    headline=Figure(value=0.2, interval=wilson(3, 15)),
    no_headline=None,
    metrics={"strict [em]": Figure(value=0.1, interval=None)},
    outcomes={
        "correct": 3,
        "wrong": 9,
        "unparsable": 2,
        "truncated": 1,
        "unscored": 0,
        "failed": 0,
    },
    samples=15,
    items=15,
    samples_per_item=1,
    full_size=1319,
    subset=True,
    source="a package",
    licence="MIT",
    digest="abcdef0123456789",
)
PROVENANCE = Provenance(
    engine="vllm",
    engine_version="0.32.0",
    engine_arguments=(),
    environment=None,
    model="smollm2",
    weights_digest="f" * 64,
    chat_template_digest=None,
    base_url="http://127.0.0.1:8000",
)
REPORT = Report(
    run="20261121-034512-smollm2-gsm8k-7f3a",
    folder="/state/runs/20261121-034512-smollm2-gsm8k-7f3a",
    model="smollm2",
    complete=True,
    seed=7,
    temperature=0.0,
    tasks=(TASK,),
    throughput=Throughput(
        wall_seconds=10.0,
        requests=15,
        prompt_tokens=1500,
        generated_tokens=3000,
        requests_per_second=1.5,
        prompt_tokens_per_second=150.0,
        generated_tokens_per_second=300.0,
    ),
    provenance=(PROVENANCE,),
    notes=("gsm8k: a subset, 15 of 1,319 items",),
)


def text(report: Report, width: int = 100) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False).print(render_report(report))
    return stream.getvalue()


def test_report_says_everything():
    """Score, interval, method, every outcome, throughput, data, server, seed and place."""
    shown = text(REPORT)
    for part in (
        "smollm2",
        "20.0%",
        "7.0% to 45.2%",
        "wilson",
        "strict [em]",
        "gsm8k (subset)",
        "15 of 1,319 items",
        "MIT",
        "abcdef012345",
        "300 generated tokens/s",
        "vllm 0.32.0",
        "seed 7",
        REPORT.folder,
        "note: gsm8k: a subset",
    ):
        assert part in shown, part
    header, counts = (line for line in shown.splitlines() if "unparsable" in line or " 9 " in line)
    assert header.split()[2:] == [
        "correct",
        "wrong",
        "unparsable",
        "truncated",
        "unscored",
        "failed",
    ]
    assert counts.split() == ["gsm8k", "15", "3", "9", "2", "1", "0", "0"]


def test_sampling_of_harness_tasks_is_their_own():
    """Only what was set is sent to a harness, so nothing else is claimed of its tasks."""
    work = HarnessWork(name="lm-eval", version="0.4.13", figures=())
    foreign = msgspec.structs.replace(TASK, task="lm-eval:piqa", harness=work)
    mixed = msgspec.structs.replace(REPORT, tasks=(TASK, foreign), seed=0)
    shown = text(mixed)
    assert "seed 0, temperature 0" in shown
    assert "harness tasks: their own settings" in shown
    alone = text(msgspec.structs.replace(mixed, tasks=(foreign,)))
    assert "temperature 0" not in alone
    seeded = text(msgspec.structs.replace(mixed, tasks=(foreign,), seed=7))
    assert "harness tasks: seed 7; the rest is their own" in seeded


@pytest.mark.parametrize(
    ("dtype", "reason", "line"),
    [
        ("float32", "the CPU has none", "computed in  float32: the CPU has none"),
        ("bfloat16", None, "computed in  bfloat16"),
        (None, None, ""),
    ],
)
def test_the_number_type_and_why(dtype, reason, line):
    """Shown if it was chosen or requested; the engine's own choice is not guessed."""
    answered = msgspec.structs.replace(PROVENANCE, dtype=dtype, dtype_reason=reason)
    shown = text(msgspec.structs.replace(REPORT, provenance=(answered,)))
    assert ("computed in" in shown) == bool(line)
    assert line in shown


AT_K = tuple(
    AtK(
        k=k,
        items=15 - k,
        left_out=k,
        pass_at_k=Figure(value=0.1 * k, interval=wilson(k, 15)),
        mean_at_k=None if k == 4 else Figure(value=0.21, interval=None),
        best_at_k={"strict [em]": Figure(value=0.33, interval=wilson(5, 15))},
    )
    for k in (1, 2, 4)
)


@pytest.mark.parametrize("width", [40, 100])
def test_figures_at_k(width):
    """A column per k with the intervals below, or a line each; items left out are counted."""
    report = msgspec.structs.replace(
        REPORT, tasks=(msgspec.structs.replace(TASK, at_k=AT_K, samples_per_item=4),)
    )
    shown = text(report, width)
    assert all(len(line) <= width for line in shown.splitlines())
    for part in ("pass@k", "mean@k", "best@k strict [em]", "40.0%", "21.0%", "33.0%", "none"):
        assert part in shown, part
    words = " ".join(shown.split())
    assert "k = 4: 4 of 15 items are left out" in words
    if width == 100:
        (row,) = (line for line in shown.splitlines() if line.startswith("pass@k"))
        assert row.split()[1:] == ["10.0%", "20.0%", "40.0%"]
        assert "10.9% to 52.0%" in shown


def test_missing_headline_gives_the_reason():
    """No score is shown as none, with why, and an incomplete run says so."""
    task = msgspec.structs.replace(
        TASK,
        headline=None,
        no_headline="2 of 15 samples failed",
        outcomes={"correct": 3, "failed": 2},
    )
    shown = text(msgspec.structs.replace(REPORT, tasks=(task,), complete=False))
    assert "none" in shown
    assert "2 of 15 samples failed" in shown
    assert "(incomplete)" in shown
    assert "5 of 15" in shown


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_narrow_terminals_lose_nothing(width):
    """Lines fit the width; values are folded, never cut."""
    shown = text(REPORT, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    joined = "".join(shown.split())
    assert REPORT.run in joined or width < 60
    assert "20.0%" in joined


def test_no_escape_codes_without_a_terminal():
    """A pipe gets plain text; names with brackets are no markup."""
    stream = io.StringIO()
    print_report(REPORT, file=stream)
    assert "\x1b" not in stream.getvalue()
    assert "strict [em]" in stream.getvalue()


def test_no_color_is_obeyed(monkeypatch):
    """On a terminal colours appear unless NO_COLOR is set."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLORTERM", raising=False)
    runs = [RunInfo(id="r", status=RunStatus.FAILED, created=datetime(2026, 1, 2, tzinfo=UTC),
                    model="m", tasks=("a",), versions={})]  # fmt: skip
    coloured = TerminalStream()
    print_runs(runs, file=coloured)
    assert "\x1b[31m" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = TerminalStream()
    print_runs(runs, file=plain)
    assert "\x1b[3" not in plain.getvalue()
    assert make_console(plain).no_color


def test_list_of_runs():
    """Id, status, time, model and tasks; an empty list says how to make one."""
    stream = io.StringIO()
    info = RunInfo(
        id="20261121-034512-smollm2-gsm8k-7f3a",
        status=RunStatus.COMPLETE,
        created=datetime(2026, 11, 21, 3, 45, tzinfo=UTC),
        model="smollm2",
        tasks=("gsm8k", "ifeval"),
        versions={},
    )
    print_runs([info], file=stream)
    shown = stream.getvalue()
    for part in (info.id, "complete", "2026-11-21 03:45", "smollm2", "gsm8k, ifeval"):
        assert part in shown
    empty = io.StringIO()
    print_runs([], file=empty)
    assert "enginehouse eval" in empty.getvalue()


VIEW = SampleView(
    number=3,
    total=15,
    task="gsm8k",
    item="q2",
    repeat=0,
    requests=(
        SampleRequest(
            prompt=ChatPrompt((Message("user", "What is [bold]1 + 1[/bold]?"),)),
            parameters=SamplingParameters(seed=99, stop=("\n\n",)),
        ),
    ),
    responses=(
        SampleResponse(
            completions=(Completion(text="2", finish_reason="stop", reasoning="easy"),),
            model="smollm2",
            request_id="r",
            prompt_tokens=9,
            completion_tokens=1,
            timing=Timing(started=0.0, elapsed=1.5, first_token=0.25, attempts=2),
        ),
    ),
    loglikelihoods=None,
    outcome="correct",
    answer="2",
    measures={"em": 1.0},
    failure=None,
)


def test_sample_is_shown_in_full():
    """Prompt, answer, reasoning, outcome, seed, timing and attempts, markup left alone."""
    shown = render_sample(VIEW)
    for part in (
        "sample 3 of 15: task gsm8k, item q2, repeat 0",
        "outcome: correct",
        "answer understood: 2",
        "em: 1",
        "seed 99",
        "stop ['\\n\\n']",
        "1.500 s, first token after 0.250 s, attempts: 2",
        "[user]\nWhat is [bold]1 + 1[/bold]?",
        "[reasoning]\neasy",
        "[answer, finish reason stop]\n2",
    ):
        assert part in shown, part


def test_failed_and_unscored_samples():
    """A failure shows class, stage and message; an unscored sample says so."""
    failed = msgspec.structs.replace(
        VIEW,
        responses=(),
        outcome="failed",
        answer=None,
        measures={},
        failure="RequestTimeoutError (wire): no first byte",
    )
    assert "failure: RequestTimeoutError (wire): no first byte" in render_sample(failed)
    unscored = msgspec.structs.replace(VIEW, outcome=None)
    assert "outcome: not scored yet" in render_sample(unscored)


def test_choice_shows_each_continuation():
    """Log-likelihoods stand beside the tokens that were sent."""
    request = SampleRequest(prompt=TokenPrompt((1, 2, 3)))
    choice = msgspec.structs.replace(
        VIEW, requests=(request, request), responses=(), loglikelihoods=(-1.25, -3.5)
    )
    shown = render_sample(choice)
    assert "continuation 0: log-likelihood -1.2500\n[3 tokens] 1 2 3" in shown
    assert "continuation 1: log-likelihood -3.5000" in shown
