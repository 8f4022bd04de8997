from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.evaluation_fakes import AddOne, PickFirst, dataset

from enginehouse.core.errors import ConfigurationError, DataError, UnknownNameError
from enginehouse.evaluation.plan import plan_tasks, sample_seed, select
from enginehouse.evaluation.records import EvaluationSpec, TaskSpec


def test_seed_is_the_documented_hash():
    """First 31 bits of SHA-256 of the JSON array: anyone can compute it, on any machine."""
    digest = hashlib.sha256(b'[7,"gsm8k","item-3",2]').digest()
    assert sample_seed(7, "gsm8k", "item-3", 2) == int.from_bytes(digest[:4], "big") >> 1


@given(st.integers(), st.text(max_size=5), st.text(max_size=5), st.integers(0, 99))
def test_seed_fits_and_every_part_counts(seed, task, item, repeat):
    """In [0, 2**31), and another when any part changes."""
    found = sample_seed(seed, task, item, repeat)
    assert 0 <= found < 2**31
    others = [
        sample_seed(seed + 1, task, item, repeat),
        sample_seed(seed, task + "x", item, repeat),
        sample_seed(seed, task, item + "x", repeat),
        sample_seed(seed, task, item, repeat + 1),
    ]
    assert found not in others


def test_limit_takes_a_seeded_choice():
    """Distinct items, the same every time, not the file's first, another under another seed."""
    items = dataset(1000).items
    chosen = list(select(items, limit=50, seed=1, task="t"))
    assert len(set(chosen)) == 50
    assert chosen == list(select(items, limit=50, seed=1, task="t"))
    assert chosen != list(range(50))
    assert chosen != list(select(items, limit=50, seed=2, task="t"))
    assert 350 < sum(chosen) / 50 < 650


def test_smaller_limit_is_the_beginning_of_a_larger_one():
    """Raising the limit keeps the items that were asked before."""
    items = dataset(200).items
    assert select(items, limit=80, seed=3, task="t")[:20] == select(
        items, limit=20, seed=3, task="t"
    )


def test_choice_does_not_depend_on_the_files_order():
    """The same items are chosen from a file sorted otherwise."""
    items = dataset(100).items
    backwards = items[::-1]
    one = [items[i].id for i in select(items, limit=10, seed=0, task="t")]
    other = [backwards[i].id for i in select(backwards, limit=10, seed=0, task="t")]
    assert one == other


@pytest.mark.parametrize("limit", [None, 10, 11])
def test_no_limit_keeps_the_files_order(limit):
    """All items, in order, whether unlimited or limited to no less than all."""
    assert list(select(dataset(10).items, limit=limit, seed=0, task="t")) == list(range(10))


def test_plan_says_what_is_a_subset():
    """A limit or a part of a benchmark is a subset; everything of it is none."""
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="a"), TaskSpec(name="b", limit=3), TaskSpec(name="c"))
    )
    tasks = {
        "a": (AddOne("a"), dataset(5)),
        "b": (AddOne("b"), dataset(5)),
        "c": (AddOne("c"), dataset(5, full_size=9)),
    }
    plans = plan_tasks(spec, tasks)
    assert [(p.record.items, p.record.full_size, p.record.subset) for p in plans] == [
        (5, 5, False),
        (3, 5, True),
        (5, 9, True),
    ]


def test_choices_are_asked_once():
    """Log-likelihoods do not vary, so repeats are for written answers only; tasks may differ."""
    spec = EvaluationSpec(
        tasks=(TaskSpec(name="a"), TaskSpec(name="b"), TaskSpec(name="c", samples=2)), samples=4
    )
    data = dataset(2)
    tasks = {"a": (AddOne("a"), data), "b": (PickFirst("b"), data), "c": (AddOne("c"), data)}
    assert [p.record.samples for p in plan_tasks(spec, tasks)] == [4, 1, 2]


def test_unknown_and_empty_tasks_are_errors():
    """A task that was not loaded, and one without items."""
    spec = EvaluationSpec(tasks=(TaskSpec(name="addon"),))
    with pytest.raises(UnknownNameError, match="'addone'"):
        plan_tasks(spec, {"addone": (AddOne(), dataset(1))})
    with pytest.raises(DataError, match="no items"):
        plan_tasks(spec, {"addon": (AddOne(), dataset(0))})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": (TaskSpec(name="a"), TaskSpec(name="a"))}, "named twice"),
        ({"samples": 0}, "samples"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_failed": 1.5}, "max_failed"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_nonsense_is_refused(wrong, message):
    """A spec that cannot be run is not made."""
    with pytest.raises(ConfigurationError, match=message):
        EvaluationSpec(**{"tasks": (TaskSpec(name="a"),), **wrong})


def test_task_limits_must_be_positive():
    """Nor is a task's."""
    with pytest.raises(ConfigurationError, match=r"limit.* \ba\b"):
        TaskSpec(name="a", limit=0)
