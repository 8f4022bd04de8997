"""`enginehouse gate`, with real runs of the fake engine."""

from __future__ import annotations

import pytest
from tests.support.command_line import House, sums


@pytest.fixture
def evaluated(house: House, call):
    """Evaluate thirty sums of which the first `wrong` are answered wrongly; gives the run's id."""
    house.model()
    items, _ = sums(right=30)
    task = str(house.task(items))

    def run(wrong: int) -> str:
        canned = {f"Sum number {n}:": f"It is {'100' * (n < wrong)}{n}." for n in range(30)}
        answers = ("--env", house.answers(canned))
        done = call("eval", "tiny", "--task", task, *answers, "--json", "-q")
        assert done.code == 0, done.err
        return done.report["run"]

    return run


@pytest.mark.slow
def test_exit_codes(evaluated, call, house: House):
    """0 for a pass, 11 for a failure, 12 for too few items; the result is printed in each case."""
    baseline, better, worse = evaluated(12), evaluated(0), evaluated(27)
    policy = house.work / "policy.yaml"
    policy.write_text("margin: 0.05\n")
    words = ("--baseline", baseline, "--policy", str(policy))
    for run, code, verdict in ((better, 0, "pass"), (worse, 11, "fail")):
        done = call("gate", run, *words)
        assert done.code == code, done.err
        assert f"verdict: {verdict}" in done.out
        report = call("gate", run, *words, "--json").report
        assert report["verdict"] == verdict
        assert report["figures"][0]["result"]["pairs"] == 30
    again = evaluated(12)
    done = call("gate", again, *words, "--json")
    assert done.code == 12
    assert done.report["figures"][0]["items_needed"] > 30
    policy.write_text("margin: 0.05\nallow_undecided: true\n")
    assert call("gate", again, *words).code == 0


@pytest.mark.slow
def test_what_is_refused(evaluated, call, house: House):
    """Exit code 2 for a wrong policy, 8 for a run that does not exist; nothing is printed."""
    run = evaluated(3)
    policy = house.work / "policy.yaml"
    for text in ("", "margn: 0.1\n", "margin: [\n", "margin: .nan\n"):
        policy.write_text(text)
        done = call("gate", run, "--baseline", run, "--policy", str(policy))
        assert (done.code, done.out) == (2, ""), text
    policy.write_text("margin: 0.1\n")
    words = ("--policy", str(policy))
    assert call("gate", run, "--baseline", "nosuchrun", *words).code == 8
    assert call("gate", run, "--baseline", run, *words).code == 2
    missing = str(house.work / "nosuch.yaml")
    assert call("gate", run, "--baseline", run, "--policy", missing).code == 2
