"""Matches replayed from another experiment's record, until something differs."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from tests.support.arena_fakes import (
    FakeModel,
    calls,
    matches,
    new_run,
    play,
    provenance,
    question_of,
    records,
    red_black,
    team,
    vote_for,
)

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import Model
from enginehouse.arena.records import CallKey, ProvenanceRecord
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capability
from enginehouse.core.sampling import SamplingParameters
from enginehouse.games.registry import make_game

TWO = (team("red", size=2), team("black", size=2))


def by_seed(request):
    """Votes and words that differ between calls."""
    seed = request.parameters.seed or 0
    if "your turn to speak" in question_of(request):
        return f"<think>{seed}</think>I say {seed}."
    return vote_for("RED" if seed % 3 else "BLACK")(request)


def comparable(match):
    """A match's record without its times."""
    return msgspec.json.encode(msgspec.structs.replace(match, started=0, seconds=0))


@pytest.fixture
async def recorded(tmp_path):
    """Two matches, played by models."""
    run = new_run(tmp_path, "recorded")
    spec = red_black(*TWO, matches=2)
    played = await play(spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed))
    return spec, run, played


async def test_a_finished_match_is_replayed_byte_for_byte_without_models(tmp_path, recorded):
    """Every turn, every prompt and every answer; nobody is asked."""
    spec, then, played = recorded
    run = new_run(tmp_path)
    again = await play(spec, run, cassette=then.journal_path)
    assert [comparable(m) for m in again] == [comparable(m) for m in played]
    assert all(m.diverged == {} for m in again)

    def content(journal):
        return {
            c.key: msgspec.json.encode((c.request, c.response, c.value, c.read_by))
            for c in calls(journal)
        }

    assert content(run) == content(then)
    assert all(c.replayed for c in calls(run))
    sessions = [r for r in records(run) if isinstance(r, ProvenanceRecord)]
    assert {s.provenance.model for s in sessions} == {"red", "black"}
    assert all(s.seeded for s in sessions)


async def test_a_replay_can_be_replayed_and_resumed(tmp_path, recorded):
    """A replay's journal is a journal like any other."""
    spec, then, played = recorded
    first, second = new_run(tmp_path, "1"), new_run(tmp_path, "2")
    await play(spec, first, cassette=then.journal_path)
    again = await play(spec, second, cassette=first.journal_path)
    assert [comparable(m) for m in again] == [comparable(m) for m in played]
    assert [comparable(m) for m in await play(spec, first)] == [comparable(m) for m in played]


async def test_an_interrupted_replay_is_resumed(tmp_path, recorded):
    """Without journaling anything twice, and knowing where it diverged."""
    spec, then, _ = recorded
    changed = FakeModel(vote_for("BLACK"))
    models = {
        "red": Model(sampler=changed, provenance=provenance("red", weights_digest="new")),
        "black": Model(sampler=FakeModel(by_seed), provenance=provenance("black")),
    }
    game = make_game(spec.game, spec.settings, seats=spec.seats)

    async def replay(run):
        cassette = then.journal_path
        await play_experiment(spec, game=game, models=models, run=run, cassette=cassette)
        return matches(run)

    run = new_run(tmp_path)
    whole = await replay(run)
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    for kept in range(3, len(lines), 11):
        run.journal_path.write_bytes(b"".join(lines[:kept]))
        again = await replay(run)
        assert [m.turns for m in again] == [m.turns for m in whole]
        assert [set(m.diverged) for m in again] == [set(m.diverged) for m in whole]
        assert set(Counter(c.key for c in calls(run)).values()) == {1}


async def test_another_model_in_one_seat_is_asked_until_prompts_diverge(tmp_path, recorded):
    """The other seat's recorded turns answer as long as it would be asked the same."""
    spec, then, _ = recorded
    trained = msgspec.structs.replace(
        spec,
        models=(*spec.models, msgspec.structs.replace(spec.models[0], name="trained")),
        teams=(team("trained", size=2), TWO[1]),
        pairings=(("trained", "black"),),
    )
    models = FakeModel(vote_for("RED")), FakeModel(by_seed)
    run = new_run(tmp_path)
    played = await play(
        trained, run, trained=models[0], black=models[1], cassette=then.journal_path
    )
    for match in played:
        replayed = [c for c in calls(run) if c.key.match == match.match and c.replayed]
        assert {c.key.seat for c in replayed} == {"team_b"}
        assert match.diverged["team_a"].turn == 0
        until = match.diverged.get("team_b")
        assert until is None or until.turn == 1
        assert {c.key.turn for c in replayed} >= {0}
        if until is not None:
            assert until not in {c.key for c in replayed}
            assert {c.key.turn for c in replayed} == {0}
    assert any("team_b" in match.diverged for match in played)
    assert len(models[0].requests) == 2 * 21
    assert 0 < len(models[1].requests) < 2 * 21


async def test_the_first_divergent_call_is_named(tmp_path, recorded):
    """By its key."""
    spec, then, _ = recorded
    other = FakeModel(lambda r: "something else" if "Member" in str(r.prompt) else by_seed(r))
    models = {
        "red": Model(sampler=other, provenance=provenance("red", weights_digest="new")),
        "black": Model(sampler=FakeModel(by_seed), provenance=provenance("black")),
    }
    run = new_run(tmp_path)
    game = make_game(spec.game, spec.settings, seats=spec.seats)
    await play_experiment(spec, game=game, models=models, run=run, cassette=then.journal_path)
    asked = [c.key for c in calls(run) if not c.replayed]
    assert CallKey(match=0, turn=0, seat="team_a", agent=0, kind="willingness") in asked


@pytest.mark.parametrize("change", ["parameters", "weights"])
async def test_the_same_name_is_not_the_same_model(tmp_path, recorded, change):
    """Other weights, or another temperature, are asked."""
    spec, then, _ = recorded
    digest = "red" * 8
    if change == "parameters":
        hot = msgspec.structs.replace(
            spec.models[1], parameters=SamplingParameters(temperature=1.1, max_tokens=64)
        )
        spec = msgspec.structs.replace(spec, models=(spec.models[0], hot))
    else:
        digest = "other"
    red = FakeModel(by_seed)
    models = {
        "red": Model(sampler=red, provenance=provenance("red", weights_digest=digest)),
        "black": Model(sampler=FakeModel(by_seed), provenance=provenance("black")),
    }
    game = make_game(spec.game, spec.settings, seats=spec.seats)
    run = new_run(tmp_path)
    await play_experiment(spec, game=game, models=models, run=run, cassette=then.journal_path)
    assert len(red.requests) == 2 * 21


async def test_without_models_a_divergence_is_an_error_that_says_where(tmp_path, recorded):
    """As soon as something would have to be asked."""
    spec, then, _ = recorded
    longer = msgspec.structs.replace(spec, settings={"num_rounds": 4})
    with pytest.raises(ConfigurationError) as caught:
        await play(longer, new_run(tmp_path), cassette=then.journal_path)
    assert "turn 0" in str(caught.value)


async def test_an_engine_without_constraints_replays(tmp_path):
    """The record says in which form each answer was asked for."""
    spec = red_black(*TWO)
    plain = frozenset({Capability.CHAT, Capability.SEED})
    then = new_run(tmp_path, "then")
    models = {name: FakeModel(by_seed, capabilities=plain) for name in ("red", "black")}
    played = await play(spec, then, **models)
    again = await play(spec, new_run(tmp_path), cassette=then.journal_path)
    assert [comparable(m) for m in again] == [comparable(m) for m in played]
