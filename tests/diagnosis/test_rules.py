"""Every rule knows its text, and not one that resembles it; none can be made slow."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from enginehouse.diagnosis import Rule, Surroundings
from enginehouse.diagnosis.rules import RULES
from enginehouse.engines.hf import diagnosis as hf_diagnosis
from enginehouse.engines.llamacpp import diagnosis as llamacpp_diagnosis
from enginehouse.engines.sglang import diagnosis as sglang_diagnosis
from enginehouse.engines.vllm import diagnosis as vllm_diagnosis

EXAMPLES: dict[str, list[dict[str, str]]] = yaml.safe_load(
    Path(__file__).with_name("rule_examples.yaml").read_text()
)
SHARED = tuple(RULES)
OWN = {
    "shared": (),
    "vllm": vllm_diagnosis.RULES,
    "sglang": sglang_diagnosis.RULES,
    "llamacpp": llamacpp_diagnosis.RULES,
    "hf": hf_diagnosis.RULES,
}
AROUND = Surroundings()
CASES = [(table, e["known"], e["near"]) for table, some in EXAMPLES.items() for e in some]
ALL = (*SHARED, *(rule for rules in OWN.values() for rule in rules))


def deciding(table: str, text: str) -> Rule:
    """The rule that is asked first of those that know a text."""
    rules = (*OWN[table], *SHARED)
    return next(rule for rule in rules if rule.diagnose(text, around=AROUND) is not None)


@pytest.mark.parametrize(("table", "text", "near_miss"), CASES)
def test_a_text_is_known_and_a_near_miss_is_not(table: str, text: str, near_miss: str):
    """The rule that decides the one does not match the other."""
    rule = deciding(table, text)
    assert rule.diagnose(near_miss, around=AROUND) is None


def test_every_rule_has_its_text():
    """No rule is without an example that it decides."""
    decided = {id(deciding(table, text)) for table, text, _ in CASES}
    assert [rule.pattern for rule in ALL if id(rule) not in decided] == []


@pytest.mark.parametrize("table", EXAMPLES)
def test_cause_and_next_step_are_whole(table: str):
    """No placeholder is left, no parentheses stay empty, nothing is said twice in a row."""
    for example in EXAMPLES[table]:
        text = example["known"]
        found = deciding(table, text).diagnose(text, around=AROUND)
        assert found is not None
        assert not re.search(r"[{}]", found.cause + found.fix), text
        assert "()" not in found.cause.replace("__init__()", ""), text
        assert found.evidence in text


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL, ids=[f"{i}-{rule.kind}" for i, rule in enumerate(ALL)])
def test_no_text_makes_a_rule_slow(rule: Rule):
    """A message made of a rule's own words, as long as one may be, is searched at once."""
    words = re.findall(r"[A-Za-z][\w .:'`/-]{2,}", re.sub(r"\\[dwsbn]", "1", rule.pattern))
    words += ["lib1.so", "Process 1 has 1.0 GiB", "(1) ", "port: ", "'", "1" * 50, "a" * 50]
    for word in words:
        for filler in ("", " ", "\n"):
            text = ((word + filler) * (4000 // len(word)))[:4000]
            began = time.process_time()
            rule.diagnose(text, around=AROUND)
            assert time.process_time() - began < 0.5, word
    mixed = (" ".join(words) * (4000 // len(" ".join(words)) + 1))[:4000]
    began = time.process_time()
    rule.diagnose(mixed, around=AROUND)
    assert time.process_time() - began < 0.5
