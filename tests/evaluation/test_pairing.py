from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from tests.support.comparable_runs import ran
from tests.support.evaluation_fakes import (
    PROVENANCE,
    AddOne,
    FakeSampler,
    PickFirst,
    dataset,
    new_run,
    solve,
)

from enginehouse.core.errors import BadRequestError, ConfigurationError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability
from enginehouse.evaluation.pairing import common_tasks, read_run, warnings
from enginehouse.store.runs import Run, open_run
from enginehouse.tasks.base import Generate, Item


def refusal(a: Run, b: Run) -> str:
    """Why the two cannot be compared."""
    with pytest.raises(ConfigurationError) as error:
        common_tasks(read_run(a), read_run(b))
    return str(error.value)


def warned(a: Run, b: Run) -> list[str]:
    """What is warned of when the two are compared."""
    one, other = read_run(a), read_run(b)
    return list(warnings(one, other, common_tasks(one, other)))


async def test_two_runs_of_the_same_raise_and_warn_of_nothing(layout):
    """Same items, prompts, seeds, sampling, template and engine: nothing to say."""
    known = msgspec.structs.replace(PROVENANCE, chat_template_digest="c" * 64)
    options = {"provenance": known, "samples": 2, "temperature": 0.7}
    a, b = await ran(layout, **options), await ran(layout, **options)
    assert warned(a, b) == []


async def test_a_run_is_not_compared_with_itself(layout):
    """Neither by its id nor by another way to its folder."""
    run = await ran(layout)
    assert f"both are run {run.info.id}" in refusal(run, open_run(layout, str(run.folder)))


async def test_no_task_in_common(layout):
    """The message names the tasks of both."""
    a = await ran(layout)
    b = await ran(layout, tasks={"other": (AddOne("other"), dataset(5))})
    said = refusal(a, b)
    assert "no task in common" in said
    assert "addone" in said
    assert "other" in said


DIFFERENT_DATA: Mapping[str, tuple[dict[str, Any], str]] = {
    "version": ({"tasks": {"addone": (AddOne(version=2), dataset(20))}}, "A 1, B 2"),
    "data": (
        {"tasks": {"addone": (AddOne(), msgspec.structs.replace(dataset(20), digest="e" * 64))}},
        "A dddddddddddd, B eeeeeeeeeeee",
    ),
    "size": ({"tasks": {"addone": (AddOne(), dataset(20, full_size=99))}}, "A 20, B 99"),
    "limit": ({"limit": 7}, "A 20, B 7"),
    "samples": ({"samples": 3, "temperature": 1.0}, "A 1, B 3"),
}


@pytest.mark.parametrize("what", DIFFERENT_DATA)
async def test_different_data_are_refused(layout, what):
    """Another version, digest, full size, number of items or samples: both values are named."""
    options, values = DIFFERENT_DATA[what]
    said = refusal(await ran(layout), await ran(layout, **options))
    assert "of addone" in said
    assert values in said
    assert "next: evaluate" in said


async def test_different_choices_of_items_are_refused(layout):
    """The same --limit under another --seed takes other items; the seeds are named."""
    said = refusal(await ran(layout, limit=8), await ran(layout, limit=8, seed=1))
    assert "different items of addone" in said
    assert "of 8 differ; the runs' seeds are 0 and 1" in said


class Shuffled(AddOne):
    """Asks differently under another seed, of the same items: as gpqa_diamond's choices."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def ask(self, item: Item) -> Generate:
        """The seed stands in the prompt."""
        messages = (Message(role="user", content=f"{item.data['n']} + 1 = ? ({self.seed})"),)
        return Generate(prompt=ChatPrompt(messages), max_tokens=64)


async def test_the_same_items_put_differently_are_refused(layout):
    """Equal ids and digests do not help if what was asked differs."""
    runs = [await ran(layout, tasks={"addone": (Shuffled(s), dataset(9))}, seed=s) for s in (1, 2)]
    said = refusal(*runs)
    assert "different prompts of addone" in said
    assert "9 of 9 differ; the runs' seeds are 1 and 2" in said


async def test_an_incomplete_run_is_refused(layout):
    """Samples that are missing or not scored yet: their number, and how to resume."""
    a, b = await ran(layout), await ran(layout)
    lines = b.journal_path.read_bytes().splitlines(keepends=True)
    b.journal_path.write_bytes(b"".join(lines[:-3]))  # a score, and a sample with its score
    said = refusal(a, b)
    assert f"run {b.info.id} is not complete" in said
    assert "2 of 20 samples of addone are missing" in said
    assert f"`enginehouse resume {b.info.id}`" in said
    with b.hold():
        assert "wait until it ends" in refusal(b, a)


async def test_a_run_that_never_began_is_refused(layout):
    """Killed before it asked anything."""
    said = refusal(await ran(layout), new_run(layout))
    assert "is not complete" in said
    assert "asked nothing yet" in said


async def test_tasks_of_only_one_run_are_warned_of(layout):
    """They are not compared, and that is said."""
    both = {"addone": (AddOne(), dataset(20)), "pick": (PickFirst("pick"), dataset(5))}
    said = warned(await ran(layout, tasks=both), await ran(layout))
    assert "task pick is only in run A" in said


async def test_different_answerers_are_warned_of(layout):
    """Engine, version and chat template; other weights are what a comparison is for."""
    one = msgspec.structs.replace(PROVENANCE, chat_template_digest="c" * 64)
    other = msgspec.structs.replace(
        one,
        engine="sglang",
        engine_version="2",
        chat_template_digest="d" * 64,
        weights_digest="v" * 64,
        model="another",
    )
    assert warned(await ran(layout, provenance=one), await ran(layout, provenance=other)) == [
        "different engines: A fake, B sglang",
        "different engine versions: A 1, B 2",
        "different chat templates: A cccccccccccc, B dddddddddddd",
    ]


async def test_unknown_digests_are_warned_of_with_the_reason(layout):
    """What a server of somebody else does not tell."""
    known = msgspec.structs.replace(PROVENANCE, chat_template_digest="c" * 64)
    unknown = msgspec.structs.replace(
        known, weights_digest=None, unknown={"weights_digest": "the server is not ours"}
    )
    assert warned(await ran(layout, provenance=known), await ran(layout, provenance=unknown)) == [
        "unknown weights in B: the server is not ours"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0.5}, "different temperature: A 0.0, B 0.5 (addone)"),
        ({"top_p": 0.9}, "different top_p: A 1.0, B 0.9 (addone)"),
        ({"max_tokens": 5}, "different max_tokens: A 64, B 5 (addone)"),
        ({"stop": ("x",)}, "different stop: A ('\\n',), B ('x',) (addone)"),
        ({"system": "Be kind."}, "different system messages: A None, B 'Be kind.'"),
    ],
)
async def test_different_sampling_is_warned_of(layout, options, said):
    """Every option by its name with both values; a system message is no different prompt."""
    assert said in warned(await ran(layout), await ran(layout, **options))


async def test_seeds_matter_where_answers_are_drawn(layout):
    """Warned of above temperature 0 only; an engine without seeds is named as such."""
    greedy = warned(await ran(layout), await ran(layout, seed=5))
    assert not any("seed" in said for said in greedy)
    warm = {"temperature": 1.0}
    a, b = await ran(layout, **warm), await ran(layout, seed=5, **warm)
    assert "different seeds (--seed: A 0, B 5): answers are paired by item only (addone)" in warned(
        a, b
    )
    seedless = FakeSampler(capabilities=frozenset(Capability) - {Capability.SEED})
    c = await ran(layout, sampler=seedless, **warm)
    assert "an engine does not support seeds: answers are paired by item only (addone)" in warned(
        a, c
    )


async def test_choices_of_different_tokenizers_can_be_paired(layout):
    """Token ids say nothing about whether the question was the same."""

    class OtherTokens(FakeSampler):
        async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
            ids = await super().tokenize(text, add_special_tokens=add_special_tokens)
            return tuple(i and i + 1 for i in ids)

    tasks = {"pick": (PickFirst("pick"), dataset(6))}
    a, b = await ran(layout, tasks=tasks), await ran(layout, tasks=tasks, sampler=OtherTokens())
    assert common_tasks(read_run(a), read_run(b)) == ["pick"]


async def test_failed_samples_hide_no_difference(layout):
    """Their requests are journaled like any other, so that other prompts are still found."""
    failing = FakeSampler(lambda _: BadRequestError("x", status=400))
    tasks = [{"addone": (Shuffled(s), dataset(4))} for s in (1, 2)]
    a = await ran(layout, solve, tasks=tasks[0])
    b = await ran(layout, tasks=tasks[1], sampler=failing, max_failed=1.0)
    assert "4 of 4 differ" in refusal(a, b)
