from __future__ import annotations

import numpy as np
import pytest

from enginehouse.core.errors import ConfigurationError, TaskError
from enginehouse.tasks.base import Measure, Outcome
from enginehouse.tasks.metrics import UserMetric, load_metric

C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE


@pytest.mark.parametrize(
    ("metric", "text", "answer", "outcome"),
    [
        ("exact_match", " Paris\n", "Paris", C),
        ("exact_match", "paris", "Paris", W),
        ("exact_match", "", "Paris", W),
        ("contains", "It is Paris.", "Paris ", C),
        ("contains", "It is paris.", "Paris", W),
        ("number", "It is 1,000.0", "1000", C),
        ("number", "#### 5\nor 6", "5", C),
        ("number", "6", "5", W),
        ("number", "six", "6", U),
        (r"regex:colou?r: (\w+)", "color: red, colour: blue", "blue", C),
        (r"regex:colou?r: (\w+)", "color: red", "blue", W),
        (r"regex:colou?r: (\w+)", "red", "red", U),
        (r"regex:\d+", "1 2 3", "3", C),
        (r"regex:(a)|(b)", "b", "b", C),
        (r"regex:x(:)y", "x:y", ":", C),
    ],
)
def test_named_metrics(tmp_path, metric, text, answer, outcome):
    """The last match of a pattern counts, by its first group that took part."""
    assert load_metric(metric, folder=tmp_path)(text, answer).outcome is outcome


def _user(returned) -> UserMetric:
    def function(text, item):
        if isinstance(returned, Exception):
            raise returned
        return returned

    return UserMetric(name="m:f", function=function, source=b"")


@pytest.mark.parametrize(
    ("returned", "outcome", "measures"),
    [
        (True, C, {}),
        (False, W, {}),
        (np.bool_(True), C, {"score": 1.0}),
        (1, C, {"score": 1.0}),
        (0.5, W, {"score": 0.5}),
        (np.float32(0.5), W, {"score": 0.5}),
        ({"correct": True, "bleu": 31.5}, C, {"bleu": 31.5}),
        ({"correct": 0.5, "ok": True}, W, {"ok": 1.0}),
        (None, U, {}),
        ({"correct": None, "length": 3}, U, {"length": 3.0}),
    ],
)
def test_what_a_users_metric_may_return(returned, outcome, measures):
    """A bool, a number from 0 to 1, a mapping with `correct`, or None."""
    score = _user(returned).score("text", {}, task="t", item="7")
    assert score.outcome is outcome
    assert score.measures == {name: Measure(value) for name, value in measures.items()}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (KeyError("x"), "raised KeyError: 'x'"),
        (2.0, "returned 2.0, which is neither"),
        (-0.1, "neither a bool nor a number"),
        (float("nan"), "no finite number"),
        ("yes", "'yes' for 'score', which is no finite number"),
        ({"bleu": 1.0}, "a mapping without 'correct'"),
        ({"correct": "yes"}, "'yes', which is neither"),
        ({"correct": True, "bleu": None}, "None for 'bleu'"),
    ],
)
def test_a_bad_metric_is_named_with_task_and_item(returned, message):
    """The user sees whose function failed, on what."""
    with pytest.raises(TaskError, match=rf"task t, item '7': the metric m:f .*{message}"):
        _user(returned).score("text", {}, task="t", item="7")


def test_a_module_beside_the_file_comes_first(tmp_path):
    """It hides an installed one of the same name, and may import its neighbours."""
    (tmp_path / "neighbour_of_metric.py").write_text("RIGHT = 'yes'\n")
    (tmp_path / "json.py").write_text(
        "from neighbour_of_metric import RIGHT\n\n"
        "def judge(text, item):\n    return text == RIGHT\n"
    )
    metric = load_metric("json:judge", folder=tmp_path)
    assert metric.score("yes", {}, task="t", item="0").outcome is C
    assert metric.source == (tmp_path / "json.py").read_bytes()


def test_two_folders_may_have_a_module_of_the_same_name(tmp_path):
    """Neither hides the other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f"def f(text, item):\n    return text == '{name}'\n"
        )
    a, b = (load_metric("mine:f", folder=tmp_path / name) for name in ("a", "b"))
    assert a.score("a", {}, task="t", item="0").outcome is C
    assert b.score("b", {}, task="t", item="0").outcome is C


def test_an_installed_module(tmp_path):
    """What is not beside the file is imported as usual, from within packages too."""
    assert load_metric("os.path:isabs", folder=tmp_path).function("/a") is True


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("exactmatch", "did you mean 'exact_match'"),
        ("bleu", "known: exact_match, contains, number, choice, regex:PATTERN, module:function"),
        ("regex:(", "no regular expression"),
        ("nosuchmodule:f", r"cannot import(.|\n)*nosuchmodule"),
        ("broken:f", r"cannot import(.|\n)*SyntaxError"),
        ("json:nosuch", r"cannot import(.|\n)*nosuch"),
        ("string:digits", "no function"),
    ],
)
def test_a_metric_that_cannot_be_had(tmp_path, metric, message):
    """Known before any data are read or server started."""
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigurationError, match=message):
        load_metric(metric, folder=tmp_path)
