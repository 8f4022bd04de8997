from __future__ import annotations

import asyncio
import hashlib
import re
import textwrap

import pytest

from enginehouse.core.errors import ConfigurationError, DataError, ScoringError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.tasks.base import Choose, Generate, Outcome
from enginehouse.tasks.custom import Definition, load_custom

CAPITALS = """
    name: capitals
    data: items.jsonl
    licence: CC0 1.0
    id: key
    system: Be brief.
    prompt: |
      What is the capital of {{ country }}?
    answer: capital
    max_tokens: 20
    stop: ["\\n"]
"""
ITEMS = '{"key": 1, "country": "France", "capital": "Paris"}\n'


@pytest.fixture
def make(tmp_path):
    """Write a YAML file, its data, and whatever else; give back the task."""

    def write(text=CAPITALS, items=ITEMS, name="items.jsonl", **modules: str):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(items)
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        (folder / "my.yaml").write_text(textwrap.dedent(text))
        return load_custom(folder / "my.yaml")

    return write


def test_a_written_task(make):
    """Data are relative to the YAML file, and the record has licence and digest."""
    task = make()
    data = task.load(data=None, seed=0)
    (item,) = data.items
    assert item.id == "1"
    assert data.digest == hashlib.sha256(ITEMS.encode()).hexdigest()
    assert data.licence == "CC0 1.0"
    assert not data.is_subset
    assert task.ask(item) == Generate(
        prompt=ChatPrompt(
            (Message("system", "Be brief."), Message("user", "What is the capital of France?"))
        ),
        max_tokens=20,
        stop=("\n",),
    )
    assert task.score_text(item, "Paris").outcome is Outcome.CORRECT
    assert task.score_text(item, "Rome").outcome is Outcome.WRONG


def test_csv_and_an_answer_template(make):
    """Columns are fields; without an id field the place in the file is the id."""
    task = make(
        """
        name: t
        data: items.csv
        prompt: "{{ item['a b'] }}?"
        metric: contains
        answer: "{{ first }} {{ last }}"
        """,
        "a b,first,last\nWho,Ada,Lovelace\nAnd,Alan,Turing\n",
        name="items.csv",
    )
    items = task.load(data=None, seed=0).items
    assert [item.id for item in items] == ["0", "1"]
    assert task.score_text(items[1], "It was Alan Turing.").outcome is Outcome.CORRECT


def test_data_given_at_the_command_line_come_first(make, tmp_path):
    """`data` replaces the file's own."""
    (tmp_path / "other.jsonl").write_text(ITEMS.replace("1", "2"))
    assert make().load(data=str(tmp_path / "other.jsonl"), seed=0).items[0].id == "2"


def test_data_from_the_hub(make, hub):
    """hf: works in the YAML file."""
    hub.files["owner/set", "items.jsonl"] = ITEMS.encode()
    task = make(CAPITALS.replace("items.jsonl", "hf:owner/set:items.jsonl"))
    assert task.load(data=None, seed=0).source.startswith("hf:owner/set@")


CHOICE = """
    name: c
    data: items.jsonl
    prompt: "{{ q }}"
    metric: choice
    choices: options
    answer: right
"""


@pytest.mark.parametrize("right", ['"blue"', "1", '"1"', '"B"'])
def test_multiple_choice(make, right):
    """The answer is a choice's text, its place from 0, or its letter."""
    task = make(CHOICE, f'{{"q": "The sky is", "options": ["red", "blue"], "right": {right}}}')
    (item,) = task.load(data=None, seed=0).items
    assert task.ask(item) == Choose(context="The sky is", continuations=(" red", " blue"))
    score = task.score_choice(item, [-9.0, -1.0])
    assert score.outcome is Outcome.CORRECT
    assert score.measures["acc"].value == 1.0
    assert task.info.kind == "choose"
    assert task.info.metrics == ("acc",)


async def test_a_users_function(make, score):
    """It gets the text and the item's fields; no answer is needed."""
    task = make(
        """
        name: t
        data: items.jsonl
        prompt: "{{ country }}"
        metric: judge:right
        """,
        judge="""
            def right(text, item):
                return {"correct": text == item["capital"], "length": len(text)}
        """,
    )
    (item,) = task.load(data=None, seed=0).items
    result = await score(task, item, "Paris")
    assert result.outcome is Outcome.CORRECT
    assert result.measures["length"].value == 5.0


async def test_a_function_that_raises_is_named(make, score):
    """It is an error of the task about this answer."""
    task = make(
        "{name: t, data: items.jsonl, prompt: x, id: key, metric: 'judge:f'}",
        judge="def f(text, item): return item['nosuch']",
    )
    (item,) = task.load(data=None, seed=0).items
    with pytest.raises(ScoringError, match=r"judge:f .*KeyError: 'nosuch'"):
        await score(task, item, "x")


async def test_a_function_cannot_change_the_record(make, score):
    """It gets a copy: what it takes out of one is there for the next answer."""
    task = make(
        "{name: t, data: items.jsonl, prompt: '{{ country }}', metric: 'judge:f'}",
        judge="def f(text, item): return item.pop('capital') == text",
    )
    (item,) = task.load(data=None, seed=0).items
    outcomes = [(await score(task, item, text)).outcome for text in ("Paris", "Rome", "Paris")]
    assert outcomes == [Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT]
    assert item.data["capital"] == "Paris"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("os._exit(3)", "ended its process with status 3"),
        ("os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        ("bytearray(3 << 30)", "needed more memory than it may have"),
    ],
)
async def test_a_function_that_ends_its_process(make, score, body, message):
    """It ends the scoring of this answer, not the run; the next answer is scored."""
    task = make(
        "{name: t, data: items.jsonl, prompt: x, metric: 'judge:f'}",
        judge=f"""
            import os

            def f(text, item):
                if text == "break":
                    {body}
                return True
        """,
    )
    (item,) = task.load(data=None, seed=0).items
    results = await asyncio.gather(
        *(score(task, item, text) for text in ("ok", "break", "ok", "break", "ok")),
        return_exceptions=True,
    )
    assert [isinstance(r, ScoringError) for r in results] == [False, True, False, True, False]
    assert re.search(message, str(results[1]))


def test_the_version_follows_prompt_and_scoring(make):
    """Figures of a changed definition or metric are never compared with the old ones."""
    text = "{name: t, data: items.jsonl, prompt: x, metric: 'judge:f'}"
    first = make(text, judge="def f(text, item): return True").info.version
    same = make(text, judge="def f(text, item): return True").info.version
    scored = make(text, judge="def f(text, item): return False").info.version
    asked = make(text.replace("x", "y"), judge="def f(text, item): return True").info.version
    assert first == same
    assert len({first, scored, asked}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("licence:", "license:"), "my.yaml: unknown key 'license'; did you mean 'licence'"),
        (("licence:", "zzz:"), "unknown key 'zzz'; known: answer, choices"),
        (("prompt: |", "promt: |"), "'prompt' is missing"),
        (("max_tokens: 20", "max_tokens: 0"), "'max_tokens': .*greater than or equal to 1"),
        (("max_tokens: 20", "max_tokens: many"), "'max_tokens': .*integer"),
        (("name: capitals", "name: a b"), "'name'"),
        (("answer: capital", ""), "the metric 'exact_match' needs 'answer'"),
        (("id: key", "metric: choice"), "needs 'choices'"),
        (("id: key", "choices: options"), "'choices' goes with"),
        (("id: key", "{"), r"my.yaml, line \d+, column \d+: not valid YAML"),
        (
            ("id: key", "id: {a: 1, a: 2}"),
            r"my.yaml, line \d+, .*: not valid YAML(.|\n)*occurs twice",
        ),
        (("id: key", "metric: exact"), "no metric called 'exact'"),
        (("{{ country }}", "{{ country }"), "my.yaml: prompt, line 1: not a Jinja"),
    ],
)
def test_a_wrong_definition_is_told_before_data_are_read(make, change, message):
    """File, key, the nearest key, the line."""
    with pytest.raises(ConfigurationError, match=message):
        make(CAPITALS.replace(*change))


@pytest.mark.parametrize("text", ["", "- a\n- b", "just text"])
def test_a_file_that_is_no_mapping(make, text):
    """An empty file, a list and a text are told apart from a task."""
    with pytest.raises(ConfigurationError, match="mapping"):
        make(text)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (ITEMS + '{"key": 2, "country": "X"}', "line 2: there is no field 'capital'"),
        (ITEMS + '{"key": 2, "capital": "X"}', "prompt, line 1: .* item '2'"),
        (ITEMS + ITEMS, "line 2: the id '1' occurs more than once"),
        (ITEMS.replace("1", "null"), "line 1: the id 'key' must be"),
        (ITEMS.replace('"Paris"', "null"), "line 1: 'capital' must be a text or a number"),
        (ITEMS.replace("Paris", " "), "line 1: the answer is empty"),
        ("", "no records"),
    ],
)
def test_a_wrong_record_is_named(make, items, message):
    """Every prompt and answer is tried when the data are read."""
    with pytest.raises(DataError, match=message):
        make(items=items).load(data=None, seed=0)


@pytest.mark.parametrize(
    ("options", "right", "message"),
    [
        ('["red", "blue"]', '"green"', "'green' is not a choice"),
        ('["red", "blue"]', "2", "'2' is not a choice"),
        ('["red", ""]', "0", "'options' must be a list of texts"),
        ('"red"', "0", "'options' must be a list of texts"),
    ],
)
def test_wrong_choices_are_named(make, options, right, message):
    """An answer that is no choice would be scored as wrong for ever."""
    task = make(CHOICE, f'{{"q": "x", "options": {options}, "right": {right}}}')
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        task.load(data=None, seed=0)


def test_a_number_metric_needs_numbers(make):
    """An answer without a number can never be matched."""
    task = make("{name: t, data: items.jsonl, prompt: x, metric: number, answer: capital}")
    with pytest.raises(DataError, match=r"line 1.* 'Paris'"):
        task.load(data=None, seed=0)


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("0.00005", "0.00005", "5"),
        ("1e16", "10,000,000,000,000,000", "16"),
        ('"6.02e23"', "6.02 \u00d7 10^23", "6.02e24"),
        ('"1,234.5 m"', "1234.50", "1234"),
        ('"#### 18"', "\\boxed{18} of 20", "20"),
        ('"18 eggs (3 boxes)"', "18", "3"),
        ('"3 boxes of 6 = 18"', "18", "6"),
        ("0.1", "1/10", "0.10000001"),
        ("-3", "\u22123", "3"),
    ],
)
def test_numbers_are_compared_exactly(make, gold, right, wrong):
    """However JSON and Python write them."""
    task = make(
        "{name: t, data: items.jsonl, prompt: x, metric: number, answer: a}", f'{{"a": {gold}}}'
    )
    (item,) = task.load(data=None, seed=0).items
    assert task.score_text(item, f"It is {right}.").outcome is Outcome.CORRECT
    assert task.score_text(item, f"It is {wrong}.").outcome is Outcome.WRONG


def test_a_number_is_contained_as_people_write_it(make):
    """Python would write 5e-05."""
    task = make(
        "{name: t, data: items.jsonl, prompt: x, metric: contains, answer: a}", '{"a": 0.00005}'
    )
    (item,) = task.load(data=None, seed=0).items
    assert task.score_text(item, "It is 0.00005 m.").outcome is Outcome.CORRECT


@pytest.mark.parametrize("stop", ['stop: "\\n"', 'stop: ["\\n"]'])
def test_a_stop_may_stand_alone(make, stop):
    """A line's end is the most common one."""
    task = make(CAPITALS.replace('stop: ["\\n"]', stop))
    (item,) = task.load(data=None, seed=0).items
    assert task.ask(item).stop == ("\n",)


@pytest.mark.parametrize("template", ["{country}", "{ country }", "{{ capital }}: {item.country}"])
def test_single_braces_around_a_field_are_refused(make, template):
    """They would reach the model as they stand."""
    task = make(f"{{name: t, data: items.jsonl, prompt: '{template}', answer: capital}}")
    with pytest.raises(ConfigurationError, match=r"'country'(.|\n)*\{\{ country \}\}"):
        task.load(data=None, seed=0)


@pytest.mark.parametrize(
    "template",
    [
        "{{ country }} {other}",
        '{{ country }} as {"country": …}',
        "{{ country }} {% raw %}{country}{% endraw %}",
        "{{ country }}? Answer as {capital}.",
        "{{ {'a': country}['a'] }}",
    ],
)
def test_other_braces_are_text(make, template):
    """JSON, unknown names, raw blocks, and the place for the answer."""
    task = make(f"name: t\ndata: items.jsonl\nprompt: |\n  {template}\nanswer: capital\n")
    assert len(task.load(data=None, seed=0).items) == 1


@pytest.mark.parametrize("key", ["prompt", "system", "answer"])
def test_a_null_is_never_filled_in(make, key):
    """It would read None."""
    texts = {"prompt": "x", "system": "x", "answer": "capital", key: "'{{ country }}'"}
    lines = "\n".join(f"{name}: {text}" for name, text in texts.items())
    task = make(f"name: t\ndata: items.jsonl\n{lines}\n", ITEMS.replace('"France"', "null"))
    with pytest.raises(DataError, match=r"item '0'(.|\n)*null(.|\n)*country"):
        task.load(data=None, seed=0)
    made = make(
        f"name: t\ndata: items.jsonl\n{lines}\n".replace("country", "country or 1"),
        ITEMS.replace('"France"', "null"),
    )
    assert len(made.load(data=None, seed=0).items) == 1


@pytest.mark.parametrize("context", ["", " ", "\\n"])
def test_an_empty_context_fails_before_the_run(make, context):
    """Log-likelihoods are given for what follows a text."""
    task = make(CHOICE, f'{{"q": "{context}", "options": ["red", "blue"], "right": 0}}')
    with pytest.raises(DataError, match=r"line 1.* context"):
        task.load(data=None, seed=0)


def test_an_empty_prompt_fails_before_the_run(make):
    """A field may be empty, the whole prompt may not."""
    task = make(
        CAPITALS.replace("What is the capital of ", "").replace("}}?", "}}"),
        ITEMS.replace("France", ""),
    )
    with pytest.raises(DataError, match=r"line 1.* prompt"):
        task.load(data=None, seed=0)


def test_every_key_is_documented():
    """The reference is made from these texts."""
    assert all(field.description for field in Definition.model_fields.values())
