"""Print, as JSON, what every scorer of reasoning_gym gives for right and wrong answers.

For each data set: whether any of some items' own answers does not get 1.0 (null if the package
gives none), and which kinds of wrong answers got 1.0.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from typing import Any

ITEMS = 8
ALONE = {"composite"}  # needs to be told what it is made of
WRONG = ("", "42", "I do not know")


def main() -> None:
    """Survey all data sets."""
    output = os.dup(1)
    os.dup2(2, 1)  # the package prints
    warnings.simplefilter("ignore")
    import reasoning_gym

    found = {
        name: survey(reasoning_gym.create_dataset(name, seed=1, size=ITEMS))
        for name in sorted(reasoning_gym.factory.DATASETS)
        if name not in ALONE
    }
    with os.fdopen(output, "w") as file:
        json.dump(found, file)


def survey(data: Any) -> dict[str, Any]:
    """One data set."""
    entries = [data[index] for index in range(ITEMS)]
    own = [gets_one(data, e["answer"], e) for e in entries if e["answer"] is not None]
    accepted = []
    for entry, other in zip(entries, [*entries[1:], entries[0]], strict=True):
        wrong = {answer: answer for answer in WRONG if answer != entry["answer"]}
        if other["answer"] not in (None, entry["answer"]):
            wrong["another item's"] = other["answer"]
        accepted += [kind for kind, answer in wrong.items() if gets_one(data, answer, entry)]
    return {"own": all(own) if own else None, "accepted": sorted(set(accepted))}


def gets_one(data: Any, answer: str, entry: dict[str, Any]) -> bool:
    """Whether the scorer gives 1.0; one that raises does not."""
    with contextlib.suppress(Exception):
        return float(data.score_answer(answer, entry)) == 1.0
    return False


if __name__ == "__main__":
    sys.exit(main())
