"""Prompts stay within the model's context: the oldest texts are left out."""

from __future__ import annotations

from tests.support.arena_fakes import (
    FakeModel,
    calls,
    new_run,
    play,
    provenance,
    red_black,
    team,
    vote_for,
)

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import ContextLimit, Model
from enginehouse.arena.prompts import Prompt
from enginehouse.core.errors import ContextOverflowError
from enginehouse.games.registry import make_game

LONG = {"num_rounds": 30, "multipliers": {}}
MAX_TOKENS = 64  # of the fakes' spec


def size(request) -> int:
    """The prompt's tokens, as FakeModel counts them."""
    return sum(len(message.content) for message in request.prompt.messages) // 4


def limited(context: int):
    """A model that refuses what does not fit, as servers do."""

    def reply(request):
        if size(request) + MAX_TOKENS > context:
            return ContextOverflowError(f"maximum context length is {context}", status=400)
        return vote_for("RED")(request)

    return FakeModel(reply)


async def run_with(tmp_path, model, *, context, size=1, settings=LONG):
    """One match of thirty rounds."""
    spec = red_black(team("m", size=size), team("f", "always BLACK"), settings=settings)
    run = new_run(tmp_path)
    await play_experiment(
        spec,
        game=make_game(spec.game, spec.settings, seats=spec.seats),
        models={"m": Model(sampler=model, provenance=provenance("m"), context=context)},
        run=run,
    )
    return spec, run


async def test_a_known_limit_is_never_exceeded(tmp_path):
    """The first texts are dropped in chunks, so that prompts keep their beginnings for a while."""
    model = limited(900)
    _, run = await run_with(tmp_path, model, context=900)
    assert len(model.requests) == 30, "nothing was refused"
    dropped = [call.dropped for call in calls(run)]
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    assert len(set(dropped)) < 8
    last = model.requests[-1].prompt.messages[1].content
    assert f"(The first {dropped[-1]} of these are left out.)" in last
    assert "\nRound 1 (" not in last
    assert "\nRound 29 (" in last


async def test_an_unknown_limit_is_learned_from_a_refusal(tmp_path):
    """The prompt is sent again, shorter, and later ones respect the limit."""
    model = limited(900)
    _, run = await run_with(tmp_path, model, context=None)
    refused = [r for r in model.requests if size(r) + MAX_TOKENS > 900]
    assert 1 <= len(refused) <= 2
    assert len(calls(run)) == 30
    assert all(call.response for call in calls(run))


async def test_a_limit_that_the_server_has_below_ours(tmp_path):
    """Its counts, and its refusals, correct the estimate."""
    model = limited(800)
    _, run = await run_with(tmp_path, model, context=900)
    assert len(calls(run)) == 30
    assert all(call.response for call in calls(run))


async def test_long_discussions_are_shortened_too(tmp_path):
    """After the whole history, the first opinions of the turn."""
    model = limited(2200)
    polite = model.reply

    def verbose(request):
        reply = polite(request)
        return "word " * 300 if isinstance(reply, str) and "I am for" in reply else reply

    model.reply = verbose
    _, run = await run_with(tmp_path, model, context=2200, size=6, settings={"num_rounds": 2})
    votes = [call for call in calls(run) if call.key.kind == "vote"]
    assert all(call.response and call.value == "RED" for call in votes)
    content = votes[-1].request.prompt.messages[1].content
    assert "What your team has said in this turn:\n(The first " in content


async def test_a_prompt_that_never_fits_fails_the_match(tmp_path):
    """With what happened on record."""
    model = limited(100)
    _, run = await run_with(tmp_path, model, context=100)
    (failed,) = calls(run)
    assert failed.failure is not None
    assert failed.failure.kind == "ContextOverflowError"


async def test_dropped_texts_are_the_same_after_a_resume(tmp_path):
    """The record says how many were left out; the estimate need not be learned again."""
    model = limited(900)
    spec, run = await run_with(tmp_path, model, context=900)
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    run.journal_path.write_bytes(b"".join(lines[:-1]))  # without the match's record
    again = limited(900)
    (match,) = await play(spec, run, m=again)
    assert not again.requests
    assert match.calls == 30


def test_the_estimate_is_learned_from_the_longest_prompt():
    """And it has a margin."""
    limit = ContextLimit(1000)
    prompt = Prompt("s" * 100, ("h" * 100,) * 40, (), ("e" * 50,))
    assert limit.fitting(prompt, dropped=0, max_tokens=200) > 0
    tight = limit.fitting(prompt, dropped=0, max_tokens=700)
    assert tight > limit.fitting(prompt, dropped=0, max_tokens=200)
    assert ContextLimit(None).fitting(prompt, dropped=3, max_tokens=200) == 3
    assert limit.fitting(prompt, dropped=40, max_tokens=2000) == 40
