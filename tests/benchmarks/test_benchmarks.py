"""The benchmarks' own machinery: pairs, intervals, rows, peers. Nothing here is timed."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from enginehouse.tasks.registry import load_task
from enginehouse.testing.fake_engine import running_fake_engine

FOLDER = Path(__file__).parents[2] / "benchmarks"
FIGURES = (
    *(
        "client",
        "evaluation",
        "full_engine",
        "latency",
        "launch",
        "matches",
        "memory",
        "real_engine",
    ),
    *("scripted_matches", "tinker_futures"),
    *("gateway_memory", "gateway_requests", "gateway_streams"),
)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a benchmark's module as running it does, and forgets it again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture
def interleaved(load) -> ModuleType:
    """The module of rounds and intervals."""
    return load("interleaved")


def test_every_measure_is_taken_once_a_round_in_turn_forwards_and_backwards(interleaved, capsys):
    """Drift of the machine falls on all alike; results are in the order of the rounds."""
    taken: list[str] = []

    def measure(name: str) -> float:
        taken.append(name)
        return float(len(taken))

    found = interleaved.interleaved(
        {name: lambda name=name: measure(name) for name in ("z", "a", "m")}, rounds=3
    )
    assert taken == ["z", "a", "m", "m", "a", "z", "z", "a", "m"]
    assert found == {"z": [1.0, 6.0, 7.0], "a": [2.0, 5.0, 8.0], "m": [3.0, 4.0, 9.0]}
    assert capsys.readouterr().out == "", "standard output is the table's"


def test_mean_has_students_interval(interleaved):
    """Worked by hand: mean 3, s = sqrt(2.5), t(0.975, 4) = 2.7764451."""
    found = interleaved.mean([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)
    assert found.value == 3.0
    assert found.interval.low == pytest.approx(3 - half)
    assert found.interval.high == pytest.approx(3 + half)
    assert found.count == 5


def test_ratio_is_that_of_the_pairs_whatever_the_machine_did_between_them(interleaved):
    """Twice as fast in every round is exactly 2, however the rounds differ."""
    found = interleaved.paired_ratio([200.0, 20.0, 2.0], [100.0, 10.0, 1.0])
    assert found.value == pytest.approx(2.0)
    assert found.interval.low == pytest.approx(2.0)
    assert found.interval.high == pytest.approx(2.0)


def test_ratio_and_its_inverse_have_inverse_intervals(interleaved):
    """It does not matter which of the two is called the yardstick."""
    ours, theirs = [3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 2.0, 2.5]
    one, other = interleaved.paired_ratio(ours, theirs), interleaved.paired_ratio(theirs, ours)
    assert one.value == pytest.approx(1 / other.value)
    assert one.interval.low == pytest.approx(1 / other.interval.high)
    assert one.interval.low < one.value < one.interval.high


def test_a_bound_is_asked_of_the_intervals_end(interleaved):
    """A mean that is good enough with an interval that is not has missed the figure."""
    found = interleaved.mean([1.0, 2.0, 3.0])
    assert interleaved.row("f", found, at_least=-1).endswith("| ≥ -1 | yes |")
    assert interleaved.row("f", found, at_least=1.5).endswith("| ≥ 1.5 | no |")
    assert interleaved.row("f", found, at_most=5).endswith("| ≤ 5 | yes |")
    assert interleaved.row("f", found, at_most=2.5).endswith("| ≤ 2.5 | no |")
    columns = interleaved.HEAD.splitlines()[0].count("|")
    assert interleaved.row("f", found, at_most=5).count("|") == columns


def test_a_program_that_fails_ends_the_benchmark(interleaved):
    """With its own words: a rate of a broken peer must not come into the table."""
    with pytest.raises(SystemExit, match="no such peer"):
        interleaved.output([sys.executable, "-c", "import sys; sys.exit('no such peer')"])
    said = interleaved.output([sys.executable, "-c", "print('noise'); print(1.5, 2)"])
    assert said == [1.5, 2.0]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_explains_itself_and_starts_nothing(figure, load, capsys):
    """--help says what is measured; an unknown option is refused."""
    program = load(figure)
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    assert f"benchmarks/{figure}.py" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        program.main(["--roundz", "1"])
    assert end.value.code == 2


def test_a_missing_program_is_named_with_how_to_get_it(load, monkeypatch):
    """Without nginx there is no figure, and the message says what to install."""
    server = load("fixed_server")
    monkeypatch.setattr(server.shutil, "which", lambda *_, **__: None)
    with (
        pytest.raises(SystemExit, match="nginx wrk"),
        server.fixed_server(),
    ):
        pytest.fail("it began without nginx")


def test_peers_are_pinned_and_from_nowhere_in_particular(load):
    """Every environment that is named exists; every requirement has one version, no address."""
    peers = load("peer_environments")
    text = (FOLDER / "requirements-peers.txt").read_text()
    named = re.findall(r"^# \[(.+)\]$", text, re.MULTILINE)
    assert {environment for _, environment, _ in load("client")._PEERS} < set(named)
    assert {"lm-eval", "inspect"} < set(named)
    for name in named:
        lines = peers._lines(name)
        assert lines
        assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\d.]+", line) for line in lines)
    with pytest.raises(SystemExit, match="no environment"):
        peers._lines("nobody")


def test_the_sums_are_a_task_of_ours(load, tmp_path):
    """What both lm-eval and we are asked loads here with all its items."""
    task = load_task(str(load("sums").write_task(tmp_path, items=20)))
    items = task.load(data=None, seed=0).items
    assert len(items) == 20
    assert items[7].data == {"question": "How much is 7 + 8?", "answer": "15"}


def test_the_yardstick_is_short():
    """A bare loop of more than 30 lines would be a client."""
    assert len((FOLDER / "bare_client.py").read_text().splitlines()) <= 30


@pytest.mark.slow
async def test_the_two_loops_ask_a_server_and_print_rate_and_cpu():
    """Both programs work, with the same arguments and the same output."""
    async with running_fake_engine(model="fixed") as engine:
        for program in ("bare_client.py", "our_client.py"):
            command = [sys.executable, str(FOLDER / program), engine.url, "16", "4"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: ASYNC221
            rate, cpu = map(float, done.stdout.split())
            assert rate > 0
            assert 0 < cpu < 1


def test_lm_evals_task_keeps_all_but_its_data(load):
    """harness_agreement.py: the name, the data source and the tags are replaced, nothing else."""
    lines = [
        "tag:",
        "  - a",
        "task: t",
        "dataset_path: x",
        "dataset_name: y",
        "metric_list:",
        "  - m",
    ]
    assert list(load("harness_agreement")._remaining(lines)) == ["metric_list:", "  - m"]


@pytest.mark.parametrize(
    ("read", "number"), [("$1,234.", "1234"), ("0.50", "0.5"), ("[invalid]", None), ("-", None)]
)
def test_what_lm_eval_read_is_compared_as_a_number(load, read: str, number: str | None):
    """harness_agreement.py: its text in our writing."""
    assert load("harness_agreement")._plain(read) == number
