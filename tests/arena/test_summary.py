"""The report of an experiment: figures by hand, what is paired with what, what is left out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.support.made_experiments import AT, made_spec, make_experiment

from enginehouse.arena.records import CallKey, HeaderRecord, MatchRecord, Record
from enginehouse.arena.summary import summarise_experiment
from enginehouse.core.errors import StoreError
from enginehouse.core.incidents import Incident
from enginehouse.results.experiment import ExperimentReport
from enginehouse.store.journal import Journal, read_journal
from enginehouse.store.runs import Run

COOPERATION = {"base": 0.8, "lora": 0.4}


def matches_of(run: Run) -> list[MatchRecord]:
    """The matches in the journal."""
    records = [entry.record for entry in read_journal(run.journal_path, Record)]
    return [record for record in records if isinstance(record, MatchRecord)]


def append(run: Run, *records: MatchRecord) -> None:
    """Add to the journal."""
    with Journal(run.journal_path, first=HeaderRecord) as journal:
        for record in records:
            journal.append(record)


def report_of(tmp_path: Path, cooperation=COOPERATION, *, calls=False, failed=(), **spec: Any):
    """A made experiment's run and report."""
    made = made_spec(cooperation, **spec)
    run = make_experiment(tmp_path / "run", made, cooperation, calls=calls, failed=failed)
    return run, summarise_experiment(run)


def difference(report: ExperimentReport, comparison: str, measure: str):
    """The one of two teams."""
    (result,) = (
        d for d in report.differences if (d.comparison, d.measure) == (comparison, measure)
    )
    return result


def test_figures_are_means_over_matches(tmp_path: Path):
    """Of a seat in a pairing, of a team wherever it sat, of the total."""
    run, report = report_of(tmp_path, matches=8)
    matches = matches_of(run)
    mixed = [m for m in matches if m.pairing == "base vs lora"]
    pairing = next(p for p in report.pairings if p.pairing == "base vs lora")
    of_lora = pairing.seats[1]
    assert (of_lora.seat, of_lora.team, pairing.matches) == ("team_b", "lora", 8)
    for name in ("cooperation", "exploitation_given", "exploitation_suffered"):
        expected = np.mean([m.measures["team_b"][name] for m in mixed])
        assert of_lora.figures[name].value == pytest.approx(expected)
    assert of_lora.figures["score"].value == np.mean([m.scores["team_b"] for m in mixed])
    assert pairing.total.value == np.mean([m.welfare[0] for m in mixed])
    assert pairing.welfare.value == pytest.approx(np.mean([m.welfare[0] for m in mixed]) / 150)
    (base,) = (team for team in report.teams if team.team == "base")
    everywhere = [m.scores[s] for m in matches for s, team in m.teams.items() if team == "base"]
    assert base.figures["score"].value == pytest.approx(np.mean(everywhere))
    assert base.figures["score"].count == len(everywhere) == 32


def test_first_defection_is_over_those_who_defected(tmp_path: Path):
    """And says how many they are; who never did is no round 0."""
    run, report = report_of(tmp_path, {"kind": 0.95}, matches=12)
    rounds = [m.measures[s]["first_defection"] for m in matches_of(run) for s in m.teams]
    defected = [r for r in rounds if r is not None]
    assert 0 < len(defected) < len(rounds)
    figure = report.teams[0].figures["first_defection"]
    assert figure.value == pytest.approx(np.mean(defected))
    assert figure.count == len(defected)


def test_intervals_take_whole_seeds(tmp_path: Path):
    """Both seats of a team that plays itself share a seed, and tell less than two matches would."""
    _, report = report_of(tmp_path, {"one": 0.5}, matches=12)
    interval = report.teams[0].figures["cooperation"].interval
    assert interval.method == "bootstrap by seed"
    _, few = report_of(tmp_path / "few", {"one": 0.5}, matches=4)
    assert few.teams[0].figures["cooperation"].interval is None
    assert few.teams[0].figures["cooperation"].no_interval == "too few seeds"


def test_what_does_not_vary_has_no_bootstrap(tmp_path: Path):
    """Always BLACK: a share at its bound has Wilson's interval, points have none."""
    _, report = report_of(tmp_path, {"kind": 1.0}, matches=10)
    figures = report.teams[0].figures
    assert figures["cooperation"].value == 1
    assert figures["cooperation"].interval.low == pytest.approx(0.722, abs=0.001)
    assert figures["score"].interval is None
    assert figures["score"].no_interval == "all are equal"
    assert (figures["first_defection"].value, figures["first_defection"].count) == (None, 0)


def test_one_team_instead_of_the_other(tmp_path: Path):
    """In the same seat, against the same team, on the same seed: over all four contexts."""
    run, report = report_of(tmp_path, matches=10)
    by_place = {(m.seed, *m.teams.values()): m for m in matches_of(run)}
    seeds = sorted({m.seed for m in matches_of(run)})
    expected = []
    for seed in seeds:
        changes = []
        for other in COOPERATION:
            before, after = by_place[seed, "base", other], by_place[seed, "lora", other]
            changes.append(after.scores["team_a"] - before.scores["team_a"])
            before, after = by_place[seed, other, "base"], by_place[seed, other, "lora"]
            changes.append(after.scores["team_b"] - before.scores["team_b"])
        expected.append(np.mean(changes))
    score = difference(report, "in place", "score")
    assert (score.first, score.second, score.result.pairs) == ("base", "lora", 10)
    assert score.result.difference == pytest.approx(np.mean(expected))
    cooperation = difference(report, "in place", "cooperation").result
    assert cooperation.interval.low <= cooperation.difference <= cooperation.interval.high < 0
    assert cooperation.p_value == pytest.approx(2 / 2**10)
    assert difference(report, "in place", "total").result.difference < 0


def test_head_to_head(tmp_path: Path):
    """Both in one match, in both orders of seats: the mean over the seed's two matches."""
    run, report = report_of(tmp_path, matches=10)
    expected = [
        m.scores["team_b" if m.teams["team_b"] == "lora" else "team_a"]
        - m.scores["team_a" if m.teams["team_b"] == "lora" else "team_b"]
        for m in matches_of(run)
        if len(set(m.teams.values())) == 2
    ]
    score = difference(report, "head to head", "score")
    assert score.result.difference == pytest.approx(np.mean(expected))
    assert score.result.pairs == 10
    assert report.correction == f"Holm, {len(report.differences)} tests"
    assert score.p_corrected >= score.result.p_value


def test_without_swapped_seats_a_note_says_so(tmp_path: Path):
    """Then nothing tells a team from its seat."""
    _, report = report_of(tmp_path, pairings=[("base", "lora")])
    assert {d.comparison for d in report.differences} == {"head to head"}
    assert any("seat" in note for note in report.notes)
    _, swapped = report_of(tmp_path / "swapped", pairings=[("base", "lora"), ("lora", "base")])
    assert not any("seat" in note for note in swapped.notes)


def test_failed_and_missing_matches_are_counted_and_give_no_figures(tmp_path: Path):
    """One that is played again replaces its failure."""
    run, report = report_of(tmp_path, {"one": 0.5}, matches=10, failed=(2, 7))
    assert (report.planned, report.finished) == (10, 8)
    (failures,) = report.failures
    assert (failures.kind, failures.count) == ("ServerFaultError", 2)
    assert report.teams[0].figures["score"].count == 16
    again = msgspec.structs.replace(matches_of(run)[3], match=7, seed=1007)
    append(run, again)
    report = summarise_experiment(run)
    assert (report.finished, report.failures[0].count) == (9, 1)
    with run.journal_path.open("rb") as file:
        lines = file.readlines()
    run.journal_path.write_bytes(b"".join(lines[:4]))
    cut = summarise_experiment(run)
    assert cut.finished == 2
    assert any("have not been played" in note for note in cut.notes)


def test_work(tmp_path: Path):
    """Calls and tokens of each team, the time without pauses, the hit rate."""
    run, report = report_of(tmp_path, matches=3, rounds=2, agents=3, calls=True)
    each = 3 * 2 * 2 * 3 * 4  # matches, opinion and vote, rounds, agents, seats in all pairings
    assert [team.calls for team in report.teams] == [each, each]
    assert report.work.calls == 2 * each
    assert report.work.prompt_tokens == 100 * 2 * each
    assert report.work.completion_tokens == 4 * 2 * each
    assert report.work.prefix_cache_hits == 0.9
    assert report.work.seconds == 30 * 11 + 60
    assert report.work.matches_per_hour == pytest.approx(12 * 3600 / 390)
    assert [team.agents for team in report.teams] == ["3 model-base", "3 model-lora"]
    assert report.teams[0].invalid / report.teams[0].asked == pytest.approx(1 / 6)
    assert report.teams[0].figures["invalid_rate"].value == pytest.approx(1 / 6)
    assert sum(report.teams[0].decisions.values()) == 3 * 2 * 4
    late = msgspec.structs.replace(matches_of(run)[0], match=12, seed=1, started=AT + 1e6)
    append(run, late)
    assert summarise_experiment(run).work.seconds == 30 * 11 + 60 + 60, "a pause does not count"


def test_consensus_is_the_share_of_unanimous_votes(tmp_path: Path):
    """Over the match's votes, of teams that voted."""
    run, report = report_of(tmp_path, {"one": 0.5}, matches=6, agents=3)
    shares = []
    for match in matches_of(run):
        for seat in match.teams:
            votes = [turn.decisions[seat].deliberation.votes for turn in match.turns]
            shares.append(np.mean([len(set(v)) == 1 for v in votes]))
    assert report.teams[0].figures["consensus"].value == pytest.approx(np.mean(shares))
    _, scripts = report_of(tmp_path / "scripts", {"one": 0.5}, matches=6)
    assert scripts.teams[0].figures["consensus"].count == 0


@pytest.mark.slow
def test_ratings_need_three_teams_that_met(tmp_path: Path):
    """The one that plays RED more often scores more, and is rated higher."""
    three = {"red": 0.1, "mixed": 0.5, "black": 0.9}
    _, report = report_of(tmp_path, three, matches=10)
    assert [rating.team for rating in report.ratings] == ["red", "mixed", "black"]
    first = report.ratings[0]
    assert first.wins + first.ties + first.losses == 40, "two others, two orders, ten seeds"
    assert first.rating.interval.low <= first.rating.value <= first.rating.interval.high
    assert sum(rating.rating.value for rating in report.ratings) == pytest.approx(0)
    always = {"red": 0.0, "mixed": 0.5, "black": 1.0}
    unbeaten, _, beaten = report_of(tmp_path / "always", always, matches=10)[1].ratings
    assert (unbeaten.losses, beaten.wins) == (0, 0)
    assert np.isfinite(unbeaten.rating.value)
    assert unbeaten.rating.interval is beaten.rating.interval is None
    assert (unbeaten.no_interval, beaten.no_interval) == ("never beaten", "never won")
    assert report_of(tmp_path / "two")[1].ratings == ()
    pairs = [("red", "mixed"), ("black", "black")]
    _, apart = report_of(tmp_path / "apart", three, pairings=pairs)
    assert apart.ratings == ()
    assert any("ratings" in note for note in apart.notes)


def test_matches_that_left_a_record_are_counted(tmp_path: Path):
    """Another run's record answered for them, up to some call."""
    run, report = report_of(tmp_path, matches=2)
    assert not any("record" in note for note in report.notes)
    left = msgspec.structs.replace(
        matches_of(run)[0],
        diverged={"team_a": CallKey(match=0, turn=1, seat="team_a", agent=0, kind="vote")},
    )
    append(run, left)
    assert any("1 of 8 matches left" in note for note in summarise_experiment(run).notes)


@pytest.mark.slow
def test_the_report_is_repeatable_json(tmp_path: Path):
    """The same journal gives the same bytes, without NaN."""
    run, report = report_of(tmp_path, agents=3, calls=True)
    encoded = msgspec.json.encode(report)
    assert encoded == msgspec.json.encode(summarise_experiment(run))
    assert msgspec.json.decode(encoded, type=ExperimentReport) == report


def test_another_journal_is_refused(tmp_path: Path):
    """That of a later version, of an evaluation, or none at all."""
    run, _ = report_of(tmp_path)
    written = run.journal_path.read_text()
    run.journal_path.write_text(written.replace('"format":1', '"format":99', 1))
    with pytest.raises(StoreError):
        summarise_experiment(run)
    run.journal_path.write_text('{"type":"sample"}\n')
    with pytest.raises(StoreError):
        summarise_experiment(run)
    run.journal_path.unlink()
    with pytest.raises(StoreError):
        summarise_experiment(run)


def test_deaths_of_our_servers_are_named(tmp_path: Path):
    """With their cause, as an evaluation's report does."""
    run, _ = report_of(tmp_path, matches=2)
    death = Incident(
        moment=datetime(2026, 11, 29, tzinfo=UTC),
        kind="out_of_memory",
        cause="the KV cache did not fit",
        evidence=None,
        log=None,
        in_flight=3,
        consequence="restarted",
    )
    run.update(incidents=(death,))
    report = summarise_experiment(run)
    assert report.incidents == (death,)
    assert any("out_of_memory" in note for note in report.notes)
