import pytest

from enginehouse.core.errors import TaskError
from enginehouse.tasks.base import Measure, Outcome
from enginehouse.tasks.multiple_choice import score_loglikelihoods


@pytest.mark.parametrize(
    ("values", "choices", "gold", "outcome", "acc"),
    [
        # Per character -0.5 beats -1: acc_norm and acc part company.
        ([-3.0, -2.0], ["abcdef", "ab"], 0, Outcome.CORRECT, 0.0),
        ([-3.0, -2.0], ["abcdef", "ab"], 1, Outcome.WRONG, 1.0),
        ([-1.0, -2.0], ["ab", "ab"], 0, Outcome.CORRECT, 1.0),
        # Ties go to the first choice.
        ([-2.0, -2.0], ["ab", "ab"], 0, Outcome.CORRECT, 1.0),
        ([-2.0, -2.0], ["ab", "ab"], 1, Outcome.WRONG, 0.0),
        # Characters, not bytes: "éé" has two.
        ([-2.1, -3.0], ["éé", "abc"], 1, Outcome.CORRECT, 0.0),
    ],
)
def test_acc_norm_decides_and_acc_stands_beside(values, choices, gold, outcome, acc):
    """Log-likelihood per character of the choice itself; argmax takes the first of equals."""
    score = score_loglikelihoods(values, choices=choices, gold=gold)
    assert score.outcome is outcome
    assert score.measures == {"acc": Measure(acc)}


def test_another_number_of_values_is_no_score():
    """A lost log-likelihood must not shift the others."""
    with pytest.raises(TaskError, match=r"1 log-likelihoods.* 2 choices"):
        score_loglikelihoods([-1.0], choices=["a", "b"], gold=0)
