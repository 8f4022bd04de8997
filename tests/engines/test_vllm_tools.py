"""The tool parser that belongs to a checkpoint."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from enginehouse.engines.base import LaunchContext
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.tools import FAMILIES, choose_parser
from enginehouse.provisioning.environments import EngineEnvironment

TOOLS = "{% if tools %}{{ tools }}{% endif %}"
DEEPSEEK = "<\uff5ctool\u2581call\u2581begin\uff5c>"


def _checkpoint(folder: Path, model_type: str, template: str | None) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("model_type", "template", "parser"),
    [
        ("qwen2", f"{TOOLS}<tool_call>", "hermes"),
        ("qwen3", f"{TOOLS}<tool_call>", "hermes"),
        ("qwen3_moe", f"{TOOLS}<tool_call><function=", "qwen3_coder"),
        ("llama", f"{TOOLS}Environment: ipython", "llama3_json"),
        ("llama", f"{TOOLS}<tool_call>", "hermes"),
        ("llama4", TOOLS, "llama4_pythonic"),
        ("mistral", f"{TOOLS}[TOOL_CALLS]", "mistral"),
        ("mixtral", f"{TOOLS}[AVAILABLE_TOOLS]", "mistral"),
        ("granite", f"{TOOLS}<|tool_call|>", "granite"),
        ("granitemoehybrid", f"{TOOLS}<tool_call>", "granite4"),
        ("deepseek_v3", f"{TOOLS}{DEEPSEEK}```json", "deepseek_v3"),
        ("deepseek_v3", f"{TOOLS}{DEEPSEEK}", "deepseek_v31"),
        ("gpt_oss", TOOLS, "openai"),
        ("phi3", f"{TOOLS}<|tool|>", "phi4_mini_json"),
        ("glm4_moe", f"{TOOLS}<tool_call><arg_key>", "glm45"),
        ("llama", "{{ messages }}", None),
        ("gpt_oss", "{{ messages }}", None),
        ("llama", None, None),
        ("unheard_of", f"{TOOLS}<call>", None),
    ],
)
def test_the_family_decides(tmp_path, model_type, template, parser):
    """By the template's marks and the model's type; without a place for tools there is none."""
    assert choose_parser(_checkpoint(tmp_path, model_type, template)) == parser


def test_a_folder_that_cannot_be_read_has_no_parser(tmp_path):
    """Nor has a hub's name, which is no folder at all."""
    (tmp_path / "config.json").write_text("[")
    assert choose_parser(tmp_path) is None
    assert choose_parser(Path("/nowhere/model")) is None


def _argv(environment, folder: Path, extra: str = "") -> list[str]:
    context = LaunchContext(
        environment=environment,
        model_path=str(folder),
        served_model_name="m",
        port=1,
        internal_port=2,
        start_limit=1.0,
        admin_key="adm1n",
    )
    return list(VllmEngine().command(ServerOptions(extra_args=extra), context=context).argv)


def test_the_server_is_started_with_it_unless_the_user_says_else(environment, tmp_path):
    """A parser of the user's, or none on purpose, is left alone."""
    _checkpoint(tmp_path, "qwen3", f"{TOOLS}<tool_call>")
    argv = _argv(environment, tmp_path)
    at = argv.index("--tool-call-parser")
    assert argv[at - 1 : at + 2] == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    for extra in ("--tool-call-parser=mine --tool-parser-plugin p", "--no-enable-auto-tool-choice"):
        assert "hermes" not in _argv(environment, tmp_path, extra)


@pytest.mark.engine
def test_the_installed_vllm_has_every_parser_of_the_table(vllm_environment: EngineEnvironment):
    """A renamed parser would keep such models from starting."""
    (source,) = vllm_environment.executable.parent.parent.glob(
        "lib/python*/site-packages/vllm/tool_parsers/__init__.py"
    )
    names = {
        node.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {family.parser for family in FAMILIES} <= names
