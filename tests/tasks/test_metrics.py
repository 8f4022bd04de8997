from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, ScoringError, ScoringTimeoutError
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.tasks.base import Measure, Outcome, Score, ScoringCall
from enginehouse.tasks.metrics import ProgramMetric, load_metric

C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSABLE


async def judge(metric: ProgramMetric, **arguments: Any) -> Score:
    """What its program says of one answer."""
    processes = ScoringProcesses()
    try:
        return await processes.score(ScoringCall(program=metric.program, arguments=arguments))
    finally:
        await processes.close()


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
    ],
)
def test_named_metrics(tmp_path, metric, text, answer, outcome):
    """Each is right, wrong or unparsable."""
    assert load_metric(metric, folder=tmp_path)(text, answer).outcome is outcome


@pytest.mark.parametrize(
    ("pattern", "text", "answer", "outcome"),
    [
        (r"colou?r: (\w+)", "color: red, colour: blue", "blue", C),
        (r"colou?r: (\w+)", "color: red", "blue", W),
        (r"colou?r: (\w+)", "red", "red", U),
        (r"\d+", "1 2 3", "3", C),
        (r"(a)|(b)", "b", "b", C),
        (r"x(:)y", "x:y", ":", C),
    ],
)
async def test_patterns(tmp_path, pattern, text, answer, outcome):
    """The last match of a pattern counts, by its first group that took part."""
    metric = load_metric(f"regex:{pattern}", folder=tmp_path)
    score = await judge(metric, text=text, answer=answer)
    assert score.outcome is outcome
    assert (score.answer == answer) is (outcome is C)


@pytest.mark.slow
async def test_a_pattern_that_never_ends_has_a_limit(tmp_path):
    """Catastrophic backtracking ends like anything else that takes too long."""
    metric = load_metric(r"regex:^(a+)+$", folder=tmp_path, seconds=0.5)
    with pytest.raises(ScoringTimeoutError, match=r"0\.5 s"):
        await judge(metric, text="a" * 60 + "b", answer="")


def _returning(folder, source: str) -> ProgramMetric:
    """A metric that returns, or does, what is written here."""
    (folder / "m.py").write_text(f"import numpy as np\n\ndef f(text, item):\n    {source}\n")
    return load_metric("m:f", folder=folder)


@pytest.mark.parametrize(
    ("returned", "outcome", "measures"),
    [
        ("True", C, {}),
        ("False", W, {}),
        ("np.bool_(True)", C, {"score": 1.0}),
        ("1", C, {"score": 1.0}),
        ("0.5", W, {"score": 0.5}),
        ("np.float32(0.5)", W, {"score": 0.5}),
        ("{'correct': True, 'bleu': 31.5}", C, {"bleu": 31.5}),
        ("{'correct': 0.5, 'ok': True}", W, {"ok": 1.0}),
        ("None", U, {}),
        ("{'correct': None, 'length': 3}", U, {"length": 3.0}),
    ],
)
async def test_what_a_users_metric_may_return(tmp_path, returned, outcome, measures):
    """A bool, a number from 0 to 1, a mapping with `correct`, or None."""
    score = await judge(_returning(tmp_path, f"return {returned}"), text="text", item={})
    assert score.outcome is outcome
    assert score.measures == {name: Measure(value) for name, value in measures.items()}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise KeyError('x')", "raised KeyError: 'x'"),
        ("return 2.0", "returned 2.0, which is neither"),
        ("return -0.1", "neither a bool nor a number"),
        ("return float('nan')", "not a finite number"),
        ("return 'yes'", "'yes' for 'score', which is not a finite number"),
        ("return {'bleu': 1.0}", "a mapping without 'correct'"),
        ("return {'correct': 'yes'}", "'yes', which is neither"),
        ("return {'correct': True, 'bleu': None}", "None for 'bleu'"),
    ],
)
async def test_a_bad_metric_is_named(tmp_path, source, message):
    """The user sees whose function failed, and how."""
    with pytest.raises(ScoringError, match=f"m:f .*{message}"):
        await judge(_returning(tmp_path, source), text="text", item={})


async def test_nothing_that_a_metric_prints_is_seen(tmp_path, capfd):
    """Neither the program that reads results nor a reader of --json sees it."""
    metric = _returning(tmp_path, "print('{\"id\": 1}', flush=True); return True")
    assert (await judge(metric, text="", item={})).outcome is C
    assert capfd.readouterr() == ("", "")


async def test_a_module_beside_the_file_comes_first(tmp_path):
    """It hides an installed one of the same name, and may import its neighbours."""
    (tmp_path / "neighbour_of_metric.py").write_text("RIGHT = 'yes'\n")
    (tmp_path / "json.py").write_text(
        "from neighbour_of_metric import RIGHT\n\n"
        "def judge(text, item):\n    return text == RIGHT\n"
    )
    metric = load_metric("json:judge", folder=tmp_path)
    assert (await judge(metric, text="yes", item={})).outcome is C
    assert metric.source == (tmp_path / "json.py").read_bytes()


async def test_two_folders_may_have_a_module_of_the_same_name(tmp_path):
    """Neither hides the other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f"def f(text, item):\n    return text == '{name}'\n"
        )
    a, b = (load_metric("mine:f", folder=tmp_path / name) for name in ("a", "b"))
    assert (await judge(a, text="a", item={})).outcome is C
    assert (await judge(b, text="b", item={})).outcome is C


async def test_an_installed_module(tmp_path):
    """What is not beside the file is imported as usual, from within packages too."""
    metric = load_metric("email.utils:parseaddr", folder=tmp_path)
    assert json.loads(metric.program.code)["module"] == "email.utils"
    assert metric.source.startswith(b"# Copyright")
    with pytest.raises(ScoringError, match=r"parseaddr .*TypeError"):
        await judge(metric, text="a@b", item={})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("exactmatch", "did you mean 'exact_match'"),
        ("bleu", "known: exact_match, contains, number, judge, choice, regex:PATTERN, module:fu"),
        ("regex:(", "not a regular expression"),
        ("nosuchmodule:f", r"cannot import(.|\n)*nosuchmodule"),
        ("broken:f", r"cannot import(.|\n)*SyntaxError"),
        ("json:nosuch", r"cannot import(.|\n)*nosuch"),
        ("string:digits", "not a function"),
    ],
)
def test_a_metric_that_cannot_be_had(tmp_path, metric, message):
    """Known before any data are read or server started."""
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigurationError, match=message):
        load_metric(metric, folder=tmp_path)
