"""Rules are read from files; a mistake in one is an error, not a rule that never fits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enginehouse.diagnosis import FailureKind, Rule, RuleFiles, Surroundings

AROUND = Surroundings(engine="vLLM")
TEXT = r"""
- kind: wrong_value
  when:
    - 'no parser (?P<name>\w+)'
    - 'parser <WORD> (?P<name>\w+) is unknown'
  cause: '{engine} has no parser {name}'
  next: one that {engine} has
  vague: true
"""


@pytest.fixture
def rules(tmp_path: Path):
    """The rules of a file with a text."""

    def read(text: str, **facts: dict[str, str]) -> tuple[Rule, ...]:
        path = tmp_path / "rules.yaml"
        path.write_text(text)
        return tuple(RuleFiles(path, **facts))

    return read


def test_a_name_may_stand_in_several_expressions(rules):
    """The one that matched fills the placeholder; fragments are filled in."""
    (rule,) = rules(TEXT, fragments={"WORD": "called"})
    assert rule.kind is FailureKind.WRONG_VALUE
    assert rule.vague
    for text in ("no parser x9", "parser called x9 is unknown"):
        diagnosis = rule.diagnose(text, around=AROUND)
        assert diagnosis is not None
        assert diagnosis.cause == "vLLM has no parser x9"
    assert rule.diagnose("parser x9", around=AROUND) is None


@pytest.mark.parametrize(
    ("right", "wrong"), [("wrong_value", "wrong_valeu"), ("vague: true", "vage: true")]
)
def test_a_misspelt_key_or_kind_is_refused(rules, right: str, wrong: str):
    """With the words of msgspec."""
    with pytest.raises(msgspec.ValidationError):
        rules(TEXT.replace(right, wrong))


def test_details_must_exist(rules):
    """A function that nobody gave."""
    with pytest.raises(KeyError):
        rules(TEXT + "  details: nothing\n")
