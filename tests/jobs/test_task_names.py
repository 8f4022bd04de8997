from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.task_names import native_spellings, require_runnable, resolve_task
from enginehouse.tasks.registry import TASKS


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ifeval", "ifeval"),
        ("lm-evaluation-harness.ifeval", "ifeval"),
        ("lm_eval.ifeval", "ifeval"),
        ("gpqa_diamond", "gpqa_diamond"),
        ("simple_evals.gpqa_diamond", "gpqa_diamond"),
        ("simple-evals.gpqa_diamond", "gpqa_diamond"),
        ("gsm8k", "gsm8k"),
        ("gsm8k_cot_instruct", "gsm8k"),
        ("lm-evaluation-harness.gsm8k_cot_instruct", "gsm8k"),
        ("hellaswag", "hellaswag"),
        ("bfcl/simple_python", "bfcl/simple_python"),
    ],
)
def test_native_tasks_have_the_launchers_names_too(written, name):
    """Plain and behind the harness; the sentence says which prompt and scorer it is."""
    task = resolve_task(written, base=Path())
    assert (task.written, task.name, task.native) == (written, name, True)
    info = TASKS.load(name)().info
    assert info.description in task.meaning
    assert info.headline in task.meaning


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("piqa", "lm-eval:piqa"),
        ("mbpp", "inspect:inspect_evals/mbpp"),
        ("lm-evaluation-harness.mbpp", "lm-eval:mbpp"),
        ("lm-evaluation-harness.mmlu", "lm-eval:mmlu"),
        ("AIME_2025", "inspect:inspect_evals/aime2025"),
        ("simple_evals.AIME_2024", "inspect:inspect_evals/aime2024"),
        ("bigcode-evaluation-harness.mbpp-chat", "inspect:inspect_evals/mbpp"),
        ("lm-eval:arc_easy", "lm-eval:arc_easy"),
        ("inspect:inspect_evals/gaia", "inspect:inspect_evals/gaia"),
    ],
)
def test_other_names_are_other_harnesses_tasks(written, name):
    """They are shown with the harness that runs them, and let through."""
    task = resolve_task(written, base=Path())
    assert (task.name, task.native) == (name, False)
    assert task.harness == name.partition(":")[0]
    require_runnable([task])


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("codec.ifeval", "ifeval"),  # about contamination: another benchmark
        ("nemo-skills.gsm8k_extra", "gsm8k"),
    ],
)
def test_a_refusal_names_the_nearest_native_task(written, nearest):
    """Of a harness that neither lm-eval nor inspect replaces."""
    task = resolve_task(written, base=Path())
    assert (task.name, task.native, task.harness) == (written, False, None)
    assert nearest in task.nearest
    with pytest.raises(ConfigurationError) as caught:
        require_runnable([resolve_task("ifeval", base=Path()), task])
    assert nearest in str(caught.value.fix)


def test_native_tasks_are_let_through():
    """Nothing is refused that runs here."""
    tasks = [resolve_task(name, base=Path()) for name in TASKS.names()]
    assert tasks
    assert all(task.native for task in tasks)
    require_runnable(tasks)


def test_a_harness_that_is_not_known_is_refused():
    """The known ones are listed."""
    with pytest.raises(ConfigurationError) as caught:
        resolve_task("evalharness.ifeval", base=Path())
    assert "simple-evals" in str(caught.value.fix)


def test_a_file_of_the_users_own_is_found_from_the_configuration(tmp_path):
    """As in every other configuration; a missing one is an error at once."""
    (tmp_path / "capitals.yaml").write_text(
        "name: capitals\ndata: capitals.jsonl\nprompt: '{{ question }}'\nanswer: answer\n"
    )
    task = resolve_task("capitals.yaml", base=tmp_path)
    assert (task.name, task.native) == (str(tmp_path / "capitals.yaml"), True)
    with pytest.raises(ConfigurationError):
        resolve_task("capital.yaml", base=tmp_path)


def test_every_native_spelling_resolves_to_its_task():
    """What is listed is what is accepted."""
    spellings = {name: native_spellings(name) for name in TASKS.names()}
    assert spellings["gsm8k"]
    for name, written in spellings.items():
        assert all(resolve_task(one, base=Path()).name == name for one in written)
