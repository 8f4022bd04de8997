"""Configuration from YAML: every mistake is named, with the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginehouse.commands.configuration import EvaluationConfig, with_task_paths
from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import (
    AskConfig,
    ServeConfig,
    merged,
    parse,
    read_yaml,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["qwen3-14b.yaml", "qwen3-14b-lora.yaml"])
def test_example_servers_parse(name: str) -> None:
    """The example servers are valid and hold the values their comments promise."""
    server = parse(ServeConfig, read_yaml(EXAMPLES / name), origin=name).server
    assert server.gpu_memory_utilization == 0.95
    assert (server.max_num_seqs, server.max_model_len) == (64, 4096)
    assert server.enable_prefix_caching
    assert server.enable_chunked_prefill
    assert server.enable_lora == ("lora" in name)


def test_demo_parses() -> None:
    """The demo evaluates the three tasks with their own limits."""
    config = parse(EvaluationConfig, read_yaml(EXAMPLES / "demo.yaml"), origin="demo")
    assert [(t.name, t.limit) for t in config.settings.tasks] == [
        ("hellaswag", 30),
        ("gsm8k", 15),
        ("instructions", 15),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"modle": "smollm2", "tasks": ["gsm8k"]}, "did you mean 'model'?"),
        (
            {"model": "m", "tasks": ["t"], "server": {"max_modl_len": 1}},
            "unknown key 'server.max_modl_len'; did you mean 'max_model_len'?",
        ),
        ({"model": "m", "tasks": [{"name": "t", "limt": 3}]}, "did you mean 'limit'?"),
        ({"model": "m", "tasks": []}, "'tasks'"),
        ({"tasks": ["gsm8k"]}, "give a model (or path), or the url of a server"),
        ({"model": "m", "tasks": ["t"], "temperature": "hot"}, "'temperature'"),
        ({"model": "m", "tasks": ["t"], "limit": 0}, "'limit'"),
        ({"model": "m"}, "'tasks' is missing"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], expected: str) -> None:
    """A wrong key names the nearest one; a wrong value names the key."""
    with pytest.raises(ConfigurationError) as caught:
        parse(EvaluationConfig, values, origin="eval.yaml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("eval.yaml: ")


def test_an_adapter_is_written_behind_its_model(tmp_path: Path) -> None:
    """MODEL+FOLDER; a folder whose own name has a plus in it, and an address, stay whole."""
    parsed = parse(ServeConfig, {"model": "smollm2+out/checkpoint-20"}, origin="it")
    assert (parsed.model, parsed.adapter) == ("smollm2", Path("out/checkpoint-20"))
    whole = tmp_path / "a+b"
    whole.mkdir()
    for model in (str(whole), "http://h:1/a+b"):
        assert parse(ServeConfig, {"model": model}, origin="it").model == model
    for values in ({"model": "m+"}, {"model": "+a"}, {"model": "m+a", "adapter": "b"}):
        with pytest.raises(ConfigurationError, match=r"missing|twice"):
            parse(ServeConfig, values, origin="it")


def test_a_plus_in_a_name_that_somebody_else_gave() -> None:
    """A model at a URL, or a hosted one, may be called so; an adapter's folder is there."""
    for values in (
        {"url": "http://h:1", "model": "command-r+online"},
        {"engine": "openai", "model": "gpt-4+search"},
        {"engine": "openrouter", "model": "cohere/command-r+"},
    ):
        parsed = parse(AskConfig, values, origin="it")
        assert (parsed.model, parsed.adapter) == (values["model"], None)


@pytest.mark.parametrize("who", [{"url": "http://h:1"}, {"engine": "openai"}, {}])
def test_a_folder_behind_a_plus_is_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: dict[str, str]
) -> None:
    """Wherever the model is asked, at whichever plus it stands, and below the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out" / "a+b").mkdir(parents=True)
    for base in ("tiny", "c++/base"):
        for adapter in (f"{tmp_path}/out/a+b", "~/out/a+b"):
            parsed = parse(AskConfig, who | {"model": f"{base}+{adapter}"}, origin="it")
            assert (parsed.model, parsed.adapter) == (base, tmp_path / "out" / "a+b")


def test_an_adapter_that_is_not_there_is_split_off(tmp_path: Path) -> None:
    """Behind the model that is there: what is said then names the folder that is missing."""
    base = tmp_path / "c++" / "base"
    base.mkdir(parents=True)
    parsed = parse(ServeConfig, {"model": f"{base}+out/missing"}, origin="it")
    assert (parsed.model, parsed.adapter) == (str(base), Path("out/missing"))
    parsed = parse(ServeConfig, {"model": "~nobody-of-that-name+~nor-here"}, origin="it")
    assert (parsed.model, parsed.adapter) == ("~nobody-of-that-name", Path("~nor-here"))


def test_a_key_that_is_wrong_is_not_shown() -> None:
    """As one of digits only is, which YAML takes for a number."""
    values = {"model": "m", "tasks": ["t"], "server": {"api_key": 123456789}}
    with pytest.raises(ConfigurationError, match=r"server\.api_key") as caught:
        parse(EvaluationConfig, values, origin="eval.yaml")
    assert "123456789" not in str(caught.value)


def test_several_mistakes_are_all_listed() -> None:
    """One look shows everything that must be mended."""
    with pytest.raises(ConfigurationError) as caught:
        parse(EvaluationConfig, {"modl": 1, "limit": "x"}, origin="f")
    assert "modl" in str(caught.value)
    assert "'limit'" in str(caught.value)
    assert "'tasks' is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: [1\ntasks: x", "line 2"),
        (b"- a\n- b", "must be a mapping"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"limit: 5\nseed: 1\nlimit: 50\n", "line 3, column 1"),
        (b"a: &a [*a]\n", "line 1"),
        (b"a: " + b"[" * 5_000, "nested too deeply"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, expected: str) -> None:
    """A malformed file is named, with the line where there is one."""
    path = tmp_path / "eval.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=expected) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_the_command_line_wins() -> None:
    """Options given override the file; options not given leave it alone."""
    base = {"model": "a", "server": {"port": 1, "dtype": "auto"}}
    over = {"model": "b", "seed": None, "server": {"port": 2}}
    assert merged(base, over) == {"model": "b", "server": {"port": 2, "dtype": "auto"}}


def test_task_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    """YAML files and data do; names, the hub and absolute paths stay as they are."""
    values = {
        "model": "m",
        "tasks": [
            "gsm8k",
            "mine.yaml",
            "../other/mine.yml",
            "/abs/mine.yaml",
            {"name": "gsm8k", "data": "test.jsonl", "limit": 2},
            {"name": "mine.yaml", "data": "hf:owner/name:file.csv"},
            {"name": "ifeval", "data": None},
            {"data": "x.csv"},
            7,
        ],
    }
    assert with_task_paths(values, folder=tmp_path)["tasks"] == [
        "gsm8k",
        str(tmp_path / "mine.yaml"),
        str(tmp_path / "../other/mine.yml"),
        "/abs/mine.yaml",
        {"name": "gsm8k", "data": str(tmp_path / "test.jsonl"), "limit": 2},
        {"name": str(tmp_path / "mine.yaml"), "data": "hf:owner/name:file.csv"},
        {"name": "ifeval", "data": None},
        {"data": str(tmp_path / "x.csv")},
        7,
    ]
    for wrong in ({}, {"tasks": "gsm8k"}, {"tasks": None}):
        assert with_task_paths(wrong, folder=tmp_path) == wrong


def test_tasks_may_be_plain_names() -> None:
    """`tasks: [gsm8k]` is short for `tasks: [{name: gsm8k}]`."""
    config = parse(EvaluationConfig, {"model": "m", "tasks": ["gsm8k"]}, origin="f")
    assert config.settings.tasks[0].name == "gsm8k"


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"model": "a\0b"}, "model"),
        ({"model": "\udcff"}, "model"),
        ({"server": {"env_vars": {"A": "\0"}}}, "server.env_vars.A"),
        ({"server": {"extra_args": ["--a", "\0"]}}, "server.extra_args"),
        ({"system": "\udcff"}, "system"),
        ({"path": Path("\udcff")}, "path"),
    ],
)
def test_text_that_cannot_be_written_down(values: dict[str, Any], where: str):
    """Null bytes and halves of characters are refused by the key's name."""
    with pytest.raises(ConfigurationError, match=f"'{where}'"):
        parse(EvaluationConfig, {"tasks": ["gsm8k"], "model": "m", **values}, origin="it")


def test_a_model_may_be_told_null_bytes():
    """In the system message they are text like any other."""
    values = {"tasks": ["gsm8k"], "model": "m", "system": "a\0b"}
    assert parse(EvaluationConfig, values, origin="it").settings.system == "a\0b"


def test_samples_have_a_limit():
    """More than memory could count are a wrong value."""
    values = {"tasks": ["gsm8k"], "model": "m", "samples": 10**20}
    with pytest.raises(ConfigurationError, match="samples"):
        parse(EvaluationConfig, values, origin="it")
