"""GPQA Diamond: 198 graduate-level questions with four choices, written answers.

Rein et al., "GPQA: A Graduate-Level Google-Proof Q&A Benchmark", arXiv:2311.12022, CC BY 4.0. The
data set is gated and its terms forbid posting the questions, so none of it is shipped here. The
protocol is that of simple-evals (zero-shot chain of thought, permuted choices, "Answer: X"), as
nvidia-simple-evals runs it; the wording of the prompt is ours.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from enginehouse.core.errors import DataError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import Dataset, Generate, Item, Outcome, Score, Task, TaskInfo
from enginehouse.tasks.data import Row, read_rows, user_source
from enginehouse.tasks.latex import boxed, without_latex

FULL_SIZE: Final = 198
LICENCE: Final = "Creative Commons Attribution 4.0 International (gated: do not post the questions)"
HUB: Final = "hf:Idavidrein/gpqa:gpqa_diamond.csv"
MAX_TOKENS: Final = 4096
LETTERS: Final = "ABCD"
COLUMNS: Final = (
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
)

INSTRUCTION: Final = (
    "Choose the right answer to this question. Think step by step before you answer. "
    'End with a line of the form "Answer: X", where X is one of A, B, C and D.'
)

# "Answer: C" and "The answer is option C", with any emphasis, brackets or quotes around the
# letter. A lower-case letter needs a bracket or the end of the line after it: "answer: a dipole"
# is not an A.
_DRESS: Final = r"[\s*_$()\[\]`'\"\u2018\u2019\u201c\u201d]{0,20}"
_LETTER: Final = (
    r"(?<![^\W_])(?:([A-D])(?![^\W_]|[-=][^\W_])"
    r"|([a-d])(?=[)\]]|[*_$.`'\"\u2019\u201d \t]{0,20}(?:\n|\Z)))"
)
_WORD: Final = rf"(?i:(?:the )?(?:correct )?(?:option|choice|letter)\b{_DRESS}(?:is\b|:)?{_DRESS})?"
_NAMED: Final = r"(?i:answer(?: choice| option)?|(?:correct|right|best) (?:choice|option))"
_IS: Final = (
    r"(?:[:\uff1a=]|[-=]>|(?i:is|must be|should be|would be)\b(?: (?i:therefore|thus))?\s?:?)"
)
_ANSWER: Final = re.compile(rf"\b{_NAMED}{_DRESS}{_IS}{_DRESS}{_WORD}{_LETTER}")
# A heading "Answer", and the letter on a line of its own.
_BELOW: Final = re.compile(
    r"\b(?i:answer)[*_ \t]{0,10}\n[\s*_$()\[\]]{0,20}([A-D])[*_$.)\] \t]{0,10}(?:\n|\Z)"
)
_IN_BOX: Final = re.compile(rf"\A{_DRESS}(?i:answer\b\s?:?{_DRESS})?{_WORD}{_LETTER}")


class GPQADiamond(Task):
    """The questions of the user's own copy, or of the hub once access is granted."""

    info = TaskInfo(
        name="gpqa_diamond",
        version=2,
        description="graduate-level science questions, zero-shot chain of thought",
        kind="generate",
        headline="the last 'Answer: X', else the last box, names the right choice",
        metrics=(),
        licence=LICENCE,
        size=FULL_SIZE,
        source=f"{HUB}, or `data`: the original gpqa_diamond.csv",
        needs="access to Idavidrein/gpqa and HF_TOKEN, or `data`",
    )

    def load(self, *, data: str | None, seed: int) -> Dataset:
        """The questions, each one's choices permuted by `seed` and its Record ID.

        Raises DataError, which explains how to get access. Blocking.
        """
        try:
            source = user_source(data or HUB)
        except DataError as error:
            if data is not None:
                raise
            raise DataError(
                "GPQA Diamond is not shipped: its owners gate it and forbid posting it",
                why=f"{error.message}: {error.why}",
                fix="accept the terms on the page of Idavidrein/gpqa and set HF_TOKEN, "
                "or pass your own gpqa_diamond.csv with `data`",
            ) from error
        items: dict[str, Item] = {}
        for row in read_rows(source):
            item = _item(row, seed)
            if item.id in items:
                raise row.error(f"the Record ID {item.id!r} occurs more than once")
            items[item.id] = item
        return source.dataset(tuple(items.values()), licence=LICENCE, full_size=FULL_SIZE)

    def ask(self, item: Item) -> Generate:
        """The question with lettered choices, in one turn."""
        choices = zip(LETTERS, item.data["choices"], strict=True)
        lines = "\n".join(f"{letter}) {choice}" for letter, choice in choices)
        content = f"{INSTRUCTION}\n\n{item.data['question']}\n\n{lines}"
        return Generate(prompt=ChatPrompt((Message("user", content),)), max_tokens=MAX_TOKENS)

    def score_text(self, item: Item, text: str) -> Score:
        """Correct if the answer's letter is right; unparsable without one."""
        letter = answer_letter(text)
        if letter is None:
            return Score(outcome=Outcome.UNPARSABLE)
        right = letter == item.data["answer"]
        return Score(outcome=Outcome.CORRECT if right else Outcome.WRONG, answer=letter)


def answer_letter(text: str) -> str | None:
    r"""The letter of the last "Answer: X", else of the last `\boxed{X}`, else None.

    Emphasis, brackets, quotes, LaTeX and the word "option" around the letter do not matter.
    """
    plain = without_latex(text)
    answers = [*_ANSWER.finditer(plain), *_BELOW.finditer(plain)]
    answers.sort(key=re.Match.start)
    if not answers:
        boxes = (_IN_BOX.match(without_latex(content)) for content in boxed(text))
        answers = [box for box in boxes if box]
    return next(filter(None, answers[-1].groups())).upper() if answers else None


def _item(row: Row, seed: int) -> Item:
    name = row.text("Record ID").strip()
    choices = [row.text(column).strip() for column in COLUMNS]

    # A digest sorts the same on every machine and Python; random.shuffle makes no such promise.
    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{name}:{index}".encode()).digest()

    order = sorted(range(len(choices)), key=place)
    return Item(
        id=name,
        data={
            "question": row.text("Question").strip(),
            "choices": [choices[index] for index in order],
            "answer": LETTERS[order.index(0)],
        },
    )
