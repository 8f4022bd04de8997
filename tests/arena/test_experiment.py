"""Experiments: many matches, one journal, resumed without asking anything twice."""

from __future__ import annotations

import asyncio
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
    records,
    red_black,
    team,
    vote_for,
)

from enginehouse.arena.experiment import matches_left, play_experiment
from enginehouse.arena.models import Model
from enginehouse.arena.records import (
    AgentSpec,
    ExperimentSpec,
    HeaderRecord,
    PrefixCacheRecord,
    ProvenanceRecord,
)
from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    ForbiddenError,
    NoCreditError,
    RequestTimeoutError,
    ServerGoneError,
    UnauthorizedError,
    UnknownModelError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.core.sampler import Capability, Load
from enginehouse.core.sampling import SamplingParameters
from enginehouse.games.registry import make_game
from enginehouse.store.runs import RunStatus

TWO = (team("red", size=2), team("black", size=2))


def game_of(spec: ExperimentSpec):
    """The spec's game."""
    return make_game(spec.game, spec.settings, seats=spec.seats)


def by_seed(request):
    """Votes that differ between calls, as a seeded engine's do."""
    return vote_for("RED" if (request.parameters.seed or 0) % 3 else "BLACK")(request)


async def test_two_against_two_for_three_rounds(tmp_path):
    """The call count, the speakers and the votes are those of the original's schedule."""
    spec = red_black(*TWO)
    red, black = FakeModel(vote_for("RED")), FakeModel(vote_for("BLACK"))
    run = new_run(tmp_path)
    (match,) = await play(spec, run, red=red, black=black)

    assert run.info.status is RunStatus.COMPLETE
    assert match.failure is None
    assert match.scores == {"team_a": 24, "team_b": -24}
    assert match.calls == len(red.requests) + len(black.requests) == 42
    assert [turn.decisions["team_a"].action for turn in match.turns] == ["RED"] * 3
    deliberation = match.turns[0].decisions["team_a"].deliberation
    assert deliberation is not None
    assert [poll.speaker for poll in deliberation.polls] == [1, 0]
    assert [opinion.agent for opinion in deliberation.opinions] == [1, 0]
    assert deliberation.votes == ("RED", "RED")
    assert len(calls(run)) == 42


@pytest.mark.parametrize(("size", "rounds", "wanted"), [(1, 4, 8), (3, 2, 48), (5, 2, 100)])
async def test_the_number_of_calls(tmp_path, size, rounds, wanted):
    """R · n · (n + 5) with n agents in each team, and R · 2 with one."""
    model = FakeModel(by_seed)
    spec = red_black(
        team("a", size=size, model="m"),
        team("b", size=size, model="m"),
        settings={"num_rounds": rounds},
    )
    (match,) = await play(spec, new_run(tmp_path), m=model)
    assert match.calls == len(model.requests) == wanted


async def test_the_journal_says_who_played_what(tmp_path):
    """The header, who answers in each session, and every call with its own seed."""
    run = new_run(tmp_path)
    spec = red_black(*TWO, matches=2)
    await play(spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed))
    header, first, second, *_ = records(run)
    assert isinstance(header, HeaderRecord)
    assert msgspec.json.encode(header.spec) == msgspec.json.encode(spec)
    assert header.measures == game_of(spec).info.measures
    assert isinstance(first, ProvenanceRecord)
    assert isinstance(second, ProvenanceRecord)
    assert {first.model: first.provenance, second.model: second.provenance} == {
        name: provenance(name) for name in ("red", "black")
    }
    models = {first.id: first.model, second.id: second.model}
    made = calls(run)
    seats = {"team_a": "red", "team_b": "black"}
    assert all(models[c.provenance] == seats[c.key.seat] for c in made)
    assert len({c.key for c in made}) == len(made)
    assert len({c.request.parameters.seed for c in made}) == len(made)
    assert {c.request.parameters.logprobs for c in made} == {0}
    assert {c.request.parameters.temperature for c in made} == {0.7}


async def test_pairings_with_the_same_index_have_the_same_seeds(tmp_path):
    """Calls in the same place have the same seed, whoever is asked: the matches are paired."""
    pairings = (("red", "black"), ("black", "red"), ("red", "red"))
    run = new_run(tmp_path)
    spec = red_black(*TWO, matches=2, pairings=pairings)
    played = await play(spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed))
    assert [m.pairing for m in played[:3]] == ["red vs black", "black vs red", "red vs red"]
    assert [m.seed for m in played[:3]] == [played[0].seed] * 3
    assert played[3].seed != played[0].seed
    seeds = {c.key: c.request.parameters.seed for c in calls(run)}
    for key, seed in seeds.items():
        assert seeds[msgspec.structs.replace(key, match=key.match // 3 * 3)] == seed


async def test_engines_without_seeds_get_none(tmp_path):
    """Nor token ids; the session says so."""
    run = new_run(tmp_path)
    plain = FakeModel(vote_for("RED"), capabilities=frozenset({Capability.CHAT}))
    await play(red_black(team("m"), team("f", "always RED")), run, m=plain)
    assert {c.request.parameters.seed for c in calls(run)} == {None}
    assert {c.request.parameters.logprobs for c in calls(run)} == {None}
    assert [r.seeded for r in records(run) if isinstance(r, ProvenanceRecord)] == [False]


async def test_prompts_only_grow_at_their_ends(tmp_path):
    """So that an engine's prefix cache can use them: what is new, and who is asked, comes last."""
    model = FakeModel(vote_for("RED"))
    spec = red_black(team("m", size=3), team("f", "always RED"))
    await play(spec, new_run(tmp_path), m=model)
    systems = {request.prompt.messages[0] for request in model.requests}
    assert len(systems) == 1
    texts = [request.prompt.messages[1].content for request in model.requests]
    first_poll, second_poll = texts[:3], texts[4:6]
    shared = [text[: text.index("You are member")] for text in first_poll]
    assert len(set(shared)) == 1
    said = "What your team has said in this turn:\nMember 3: I am for RED."
    assert all(said in text for text in second_poll)
    last = texts[-1]
    assert last.index("What has happened so far") < last.index("has said in this turn")
    assert last.index("has said in this turn") < last.index("Round 3 of 3")
    assert last.index("Round 3 of 3") < last.index("You are member")


async def test_prompts_follow_the_games_settings(tmp_path):
    """Other multipliers are read by every agent."""
    model = FakeModel(vote_for("RED"))
    for number, factors in enumerate(({2: 7}, {3: 9})):
        spec = red_black(
            team("m"), team("f", "always RED"), settings={"num_rounds": 3, "multipliers": factors}
        )
        await play(spec, new_run(tmp_path, str(number)), m=model)
    assert "x7" in str(model.requests[0].prompt)
    assert "x9" not in str(model.requests[0].prompt)
    assert "x9" in str(model.requests[-1].prompt)


async def test_matches_run_at_once_up_to_what_fills_the_engine(tmp_path):
    """Models of one server share its slots."""
    one = provenance("red")
    red, black = FakeModel(by_seed), FakeModel(by_seed)
    models = {
        "red": Model(sampler=red, provenance=one, slots=10),
        "black": Model(
            sampler=black, provenance=msgspec.structs.replace(one, model="black"), slots=12
        ),
    }
    spec = red_black(*TWO, matches=8)
    most = 0
    run = new_run(tmp_path)

    def watch(progress):
        nonlocal most
        most = max(most, progress.playing)

    await play_experiment(spec, game=game_of(spec), models=models, run=run, progress=watch)
    assert red.most_in_flight + black.most_in_flight >= 10
    assert max(red.most_in_flight, black.most_in_flight) <= 10
    assert len(matches(run)) == 8


@pytest.mark.slow
async def test_a_busy_server_holds_up_only_its_own_matches(tmp_path):
    """The other pairings go on, and the busy one's matches are not all begun."""
    released = asyncio.Event()
    slow, quick = FakeModel(by_seed), FakeModel(by_seed)
    polite = slow.sample

    async def held(request):
        await released.wait()
        return await polite(request)

    slow.sample = held
    models = {
        name: Model(sampler=fake, provenance=provenance(name), slots=1)
        for name, fake in (("red", slow), ("black", quick))
    }
    spec = red_black(*TWO, matches=40, pairings=(("red", "red"), ("black", "black")))
    run = new_run(tmp_path)
    most = 0

    def watch(progress):
        nonlocal most
        most = max(most, progress.playing)
        if progress.finished == 40:
            released.set()

    await play_experiment(spec, game=game_of(spec), models=models, run=run, progress=watch)
    assert len(matches(run)) == 80
    assert most < 12


async def test_a_finished_run_asks_nothing(tmp_path):
    """And needs no models."""
    spec = red_black(*TWO)
    run = new_run(tmp_path)
    first = await play(spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed))
    size = run.journal_path.stat().st_size
    assert matches_left(spec, game=game_of(spec), run=run) == 0
    assert await play(spec, run) == first
    assert run.journal_path.stat().st_size == size


@pytest.mark.parametrize("answers", [0, 1, 7, 42, 60, 83])
async def test_an_interrupted_run_resumes_where_it_was(tmp_path, answers):
    """Nothing that was answered is asked again, and the result is that of an undisturbed run."""
    spec = red_black(*TWO, matches=2)
    undisturbed = await play(
        spec, new_run(tmp_path, "whole"), red=FakeModel(by_seed), black=FakeModel(by_seed)
    )
    run = new_run(tmp_path)
    left = answers

    def until_cancelled(request):
        nonlocal left
        left -= 1
        if left < 0:
            task.cancel()
        return by_seed(request)

    first = FakeModel(until_cancelled), FakeModel(until_cancelled)
    task = asyncio.ensure_future(play(spec, run, red=first[0], black=first[1]))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.info.status is RunStatus.INTERRUPTED
    known = {c.key for c in calls(run)}
    second = FakeModel(by_seed), FakeModel(by_seed)
    resumed = await play(spec, run, red=second[0], black=second[1])
    everything = Counter(c.key for c in calls(run))
    assert set(everything.values()) == {1}
    assert len(everything) == 84
    assert sum(len(m.requests) for m in second) == 84 - len(known)
    assert [m.turns for m in resumed] == [m.turns for m in undisturbed]
    assert [m.calls for m in resumed] == [m.calls for m in undisturbed]


async def test_a_failed_match_is_isolated_and_can_be_played_again(tmp_path):
    """Its calls are kept; only what failed is asked again."""
    spec = red_black(*TWO, matches=3)
    run = new_run(tmp_path)
    broken: list[int] = []

    def fails_once(request):
        if not broken and "Round 2 of 3" in str(request.prompt):
            broken.append(1)
            return RequestTimeoutError("too slow")
        return by_seed(request)

    red, black = FakeModel(fails_once), FakeModel(by_seed)
    played = await play(spec, run, red=red, black=black)
    (failed,) = [m for m in played if m.failure is not None]
    assert failed.failure.kind == "RequestTimeoutError"
    assert len(failed.turns) == 1
    assert failed.measures == {}
    assert run.info.status is RunStatus.COMPLETE
    assert [c.failure.kind for c in calls(run) if c.failure] == ["RequestTimeoutError"]
    assert matches_left(spec, game=game_of(spec), run=run) == 0
    assert matches_left(spec, game=game_of(spec), run=run, retry_failed=True) == 1

    before = len(calls(run))
    again = await play(
        spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed), retry_failed=True
    )
    assert all(m.failure is None for m in again)
    answered = Counter(c.key for c in calls(run) if c.response)
    assert set(answered.values()) == {1}
    assert len(answered) == 3 * 42
    assert len(calls(run)) > before


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionFailedError("refused"), ServerGoneError),
        (ServerGoneError("given up"), ServerGoneError),
        (UnauthorizedError("no", status=401), UnauthorizedError),
        (NoCreditError("no", status=402), NoCreditError),
        (UnknownModelError("no", status=404), UnknownModelError),
    ],
)
async def test_an_outage_ends_the_experiment_and_leaves_it_resumable(tmp_path, error, raised):
    """No match is failed because of it."""
    spec = red_black(*TWO, matches=3)
    run = new_run(tmp_path)
    answers = iter(range(30))
    red = FakeModel(lambda r: by_seed(r) if next(answers, None) is not None else error)
    with pytest.raises(raised):
        await play(spec, run, red=red, black=FakeModel(by_seed))
    assert run.info.status is RunStatus.INTERRUPTED
    assert matches(run) == []
    known = len(calls(run))
    resumed = FakeModel(by_seed), FakeModel(by_seed)
    played = await play(spec, run, red=resumed[0], black=resumed[1])
    assert [m.failure for m in played] == [None] * 3
    assert sum(len(m.requests) for m in resumed) == 3 * 42 - known


async def test_a_forbidden_prompt_is_not_a_forbidden_key(tmp_path):
    """A 403 ends the experiment only if the model has answered nothing yet."""
    spec = red_black(*TWO, matches=2)
    forbidden = ForbiddenError("flagged", status=403)
    never = FakeModel(lambda _: forbidden)
    run = new_run(tmp_path, "never")
    with pytest.raises(UnauthorizedError):
        await play(spec, run, red=never, black=FakeModel(by_seed))
    assert matches(run) == []
    answers = iter(range(25))
    later = FakeModel(lambda r: by_seed(r) if next(answers, None) is not None else forbidden)
    played = await play(spec, new_run(tmp_path), red=later, black=FakeModel(by_seed))
    assert {m.failure.kind for m in played if m.failure} == {"ForbiddenError"}


async def test_what_a_run_began_with_may_not_change(tmp_path):
    """Neither the settings nor the weights."""
    spec = red_black(*TWO)
    run = new_run(tmp_path)
    refusing = FakeModel(lambda _: UnauthorizedError("no", status=401))
    with pytest.raises(UnauthorizedError):
        await play(spec, run, red=refusing, black=FakeModel(by_seed))
    asked = FakeModel(by_seed)
    hotter = msgspec.structs.replace(spec.models[0], parameters=SamplingParameters(temperature=1.5))
    for change in ({"seed": 3}, {"matches": 2}, {"models": (hotter, spec.models[1])}):
        with pytest.raises(ConfigurationError):
            await play(msgspec.structs.replace(spec, **change), run, red=asked, black=asked)
    trained = Model(sampler=asked, provenance=provenance("red", weights_digest="other"))
    models = {"red": trained, "black": Model(sampler=asked, provenance=provenance("black"))}
    with pytest.raises(ConfigurationError):
        await play_experiment(spec, game=game_of(spec), models=models, run=run)
    assert not asked.requests


async def test_an_adapter_may_not_change_either(tmp_path):
    """A run would mix the answers of two, which have the same name and the same base."""
    spec = red_black(team("m"), team("f", "always RED"))
    run = new_run(tmp_path)

    async def play_with(digest, reply):
        adapted = Model(sampler=FakeModel(reply), provenance=provenance("m", adapter_digest=digest))
        await play_experiment(spec, game=game_of(spec), models={"m": adapted}, run=run)

    with pytest.raises(UnauthorizedError):
        await play_with("one", lambda _: UnauthorizedError("no", status=401))
    with pytest.raises(ConfigurationError, match="adapter"):
        await play_with("two", by_seed)
    await play_with("one", by_seed)
    assert len(matches(run)) == 1


@pytest.mark.parametrize(
    ("teams", "error"),
    [
        ((team("a", "always GREEN"), team("b", "always RED")), UnknownNameError),
        ((team("a", "never RED"), team("b", "always RED")), UnknownNameError),
        ((team("a"), team("b", "human")), ConfigurationError),
    ],
)
async def test_what_cannot_be_played_is_refused_before_anything_is_asked(tmp_path, teams, error):
    """Unknown scripts and options, and a person who is not there."""
    model = FakeModel(by_seed)
    with pytest.raises(error):
        await play(red_black(*teams), new_run(tmp_path), a=model)
    assert not model.requests


async def test_a_model_has_to_be_there_and_chat(tmp_path):
    """Before anything is asked."""
    spec = red_black(team("m"), team("f", "always RED"))
    with pytest.raises(ConfigurationError):
        await play(spec, new_run(tmp_path, "1"))
    silent = FakeModel(by_seed, capabilities=frozenset({Capability.TEXT}))
    with pytest.raises(UnsupportedError):
        await play(spec, new_run(tmp_path, "2"), m=silent)


@pytest.mark.parametrize(
    "change",
    [
        {"matches": 0},
        {"pairings": ()},
        {"pairings": (("red",),)},
        {"pairings": (("red", "green"),)},
        {"models": ()},
        {"teams": (team("red", size=2), team("red", size=2))},
        {"teams": (msgspec.structs.replace(TWO[0], agents=()), TWO[1])},
        {"teams": (TWO[0], msgspec.structs.replace(TWO[1], agents=(AgentSpec(kind="llm"),)))},
        {
            "teams": (
                TWO[0],
                msgspec.structs.replace(TWO[1], agents=(AgentSpec(kind="random", model="red"),)),
            )
        },
    ],
)
def test_specs_that_make_no_sense(change):
    """They cannot even be made."""
    with pytest.raises(ConfigurationError):
        msgspec.structs.replace(red_black(*TWO), **change)


async def test_progress_is_told(tmp_path):
    """At the end at the latest."""
    told = []
    run = new_run(tmp_path)
    spec = red_black(*TWO, matches=2)
    await play(spec, run, red=FakeModel(by_seed), black=FakeModel(by_seed), progress=told.append)
    last = told[-1]
    assert (last.matches, last.finished, last.failed, last.playing) == (2, 2, 0, 0)
    assert (last.calls, last.replayed, last.in_flight) == (84, 0, 0)
    assert last.completion_tokens == 2 * 84
    await play(spec, run, progress=told.append)
    assert (told[-1].finished, told[-1].calls) == (2, 0)


async def test_the_prefix_cache_is_measured(tmp_path):
    """What the server's counters grew by in this session."""
    readings = iter([Load(running=0, waiting=0, prefix_cache_queries=10, prefix_cache_hits=5)])
    after = Load(running=0, waiting=0, prefix_cache_queries=110, prefix_cache_hits=95)

    async def load():
        return next(readings, after)

    sampler = FakeModel(by_seed)
    models = {
        name: Model(sampler=sampler, provenance=provenance("one"), load=load)
        for name in ("red", "black")
    }
    run = new_run(tmp_path)
    spec = red_black(*TWO)
    await play_experiment(spec, game=game_of(spec), models=models, run=run)
    found = [r for r in records(run) if isinstance(r, PrefixCacheRecord)]
    assert found == [PrefixCacheRecord(url="http://127.0.0.1/one", queries=100, hits=90)]


async def test_a_server_that_was_restarted_has_no_hit_rate(tmp_path):
    """Its counters began at 0 again."""
    readings = iter([Load(running=0, waiting=0, prefix_cache_queries=90, prefix_cache_hits=5)])
    after = Load(running=0, waiting=0, prefix_cache_queries=20, prefix_cache_hits=9)

    async def load():
        return next(readings, after)

    models = {
        name: Model(sampler=FakeModel(by_seed), provenance=provenance("one"), load=load)
        for name in ("red", "black")
    }
    run = new_run(tmp_path)
    spec = red_black(*TWO)
    await play_experiment(spec, game=game_of(spec), models=models, run=run)
    assert not [r for r in records(run) if isinstance(r, PrefixCacheRecord)]


@pytest.mark.slow
async def test_a_server_gets_as_many_calls_as_it_takes(tmp_path):
    """If nothing says how many that are: more than at first, since none ever waits there."""

    async def load():
        return Load(running=model.in_flight, waiting=0)

    model = FakeModel(by_seed, seconds=lambda: 0.2)
    models = {"m": Model(sampler=model, provenance=provenance("one"), load=load)}
    five = team("m", size=5), team("n", size=5, model="m")
    spec = red_black(*five, matches=30, settings={"num_rounds": 1, "multipliers": {}})
    await play_experiment(spec, game=game_of(spec), models=models, run=new_run(tmp_path))
    assert model.most_in_flight > 64


async def test_a_refused_request_fails_its_match_only(tmp_path):
    """Such as a prompt that a hosted filter does not like."""
    spec = red_black(*TWO, matches=2)
    run = new_run(tmp_path)
    answers = iter(range(20))
    red = FakeModel(
        lambda r: by_seed(r) if next(answers, None) is not None else BadRequestError("no")
    )
    played = await play(spec, run, red=red, black=FakeModel(by_seed))
    assert {m.failure.kind for m in played if m.failure} == {"BadRequestError"}
    assert run.info.status is RunStatus.COMPLETE
