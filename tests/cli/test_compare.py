"""`enginehouse compare`, and `show --at-k`, with real runs of the fake engine."""

from __future__ import annotations

import json
import re

import pytest
from tests.support.command_line import House, sums


@pytest.fixture
def evaluated(house: House, call):
    """Evaluate thirty sums of which the first `wrong` are answered wrongly; gives the run's id."""
    house.model()
    items, _ = sums(right=30)
    task = str(house.task(items))

    def run(wrong: int, *words: str, code: int = 0) -> str:
        canned = {f"Sum number {n}:": f"It is {'100' * (n < wrong)}{n}." for n in range(30)}
        answers = ("--env", house.answers(canned))
        done = call("eval", "tiny", "--task", task, *answers, "--json", "-q", *words)
        assert done.code == code, done.err
        return done.report["run"]

    return run


@pytest.mark.slow
def test_two_models_on_the_same_items(evaluated, call):
    """12 items better, none worse: the difference, its test and the verdict, with exit code 0."""
    a, b = evaluated(15), evaluated(3)
    done = call("compare", a, b)
    assert done.code == 0, done.err
    for part in ("50.0%", "90.0%", "+40.0", "< 0.001", "exact McNemar"):
        assert part in done.out, part
    assert f"A  {a}" in done.out
    assert f"B  {b}" in done.out
    assert re.search(r"correct only in A 0, only in B 12", done.out)
    assert "warning" not in done.out
    again = call("compare", a, b, "--json").report
    assert again["tasks"][0]["verdict"] == "b_better"
    assert again["tasks"][0]["headline"]["difference"] == pytest.approx(0.4)
    assert call("compare", b, a, "--json").report["tasks"][0]["verdict"] == "a_better"


@pytest.mark.slow
def test_nothing_found_is_no_error(evaluated, call):
    """Exit code 0, and what would have been found; other sampling is warned of."""
    a, b = evaluated(3), evaluated(4, "--temperature", "0.5", "--seed", "9")
    done = call("compare", a, b)
    assert done.code == 0, done.err
    (task,) = call("compare", a, b, "--json").report["tasks"]
    least = 100 * task["headline"]["detectable"]
    assert 15 < least < 35  # about eight discordant pairs of thirty
    assert task["verdict"] == "not_shown"
    assert f"{least:.1f} points" in done.out
    assert re.search("warning: .*temperature.* A 0.0, B 0.5", done.out)
    assert re.search("warning: .*--seed.* A 0, B 9", done.out)


@pytest.mark.slow
def test_what_is_refused(evaluated, call):
    """Exit code 2 for runs that cannot be paired, 8 for one that does not exist."""
    a = evaluated(3)
    for other in (evaluated(3, "--limit", "9"), a):
        done = call("compare", a, other)
        assert (done.code, done.out) == (2, "")
        assert "next: " in done.err
    assert call("compare", a, "nosuchrun").code == 8


@pytest.mark.slow
def test_too_many_failures_are_exit_code_9(house: House, call):
    """As in eval: the comparison is printed, and the task without a score named."""
    house.model()
    items, canned = sums(right=6, failed=2)
    words = ("--task", str(house.task(items)), "--env", house.answers(canned), "--json")
    words += ("--max-model-len", "512", "-q")
    fine = call("eval", "tiny", *words, "--max-failed", "0.5").report["run"]
    lost = call("eval", "tiny", *words)
    assert lost.code == 9
    done = call("compare", fine, lost.report["run"])
    assert done.code == 9
    assert "2 of 8 samples failed" in done.out


@pytest.mark.slow
def test_samples_and_k(evaluated, call, house: House):
    """Several samples show pass@k by default; --at-k chooses, and refuses k above n."""
    words = ("--samples", "4", "--temperature", "1")
    run, other = evaluated(12, *words), evaluated(3, *words)
    shown = call("show", run)
    assert "k = 4" in shown.out
    assert "pass@k  " in shown.out
    chosen = call("show", run, "--at-k", "3,1", "--json").report["tasks"][0]["at_k"]
    assert [at["k"] for at in chosen] == [1, 3]
    assert chosen[0]["pass_at_k"]["value"] == pytest.approx(0.6)
    stored = json.loads((house.runs[0] / "report.json").read_text())["tasks"][0]["at_k"]
    assert [at["k"] for at in stored] == [1, 2, 4]
    compared = call("compare", run, other)
    assert "120 pairs (30 items, 4 samples each)" in compared.out
    assert "paired bootstrap by item" in compared.out
    for wrong in ("8", "1,x", "0", ""):
        done = call("show", run, "--at-k", wrong)
        assert (done.code, done.out) == (2, "")
        assert f"'{wrong}'" in done.err or f"pass@{wrong}" in done.err
    assert call("show", run, "--at-k", "2", "--sample", "1").code == 2
