"""Which of vLLM's tool parsers reads the calls of which model family.

Source: vLLM 0.32's `tool_parsers` and its documentation of tool calling. A checkpoint's chat
template shows how the model writes calls; where that leaves a choice, its model_type decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from enginehouse.provisioning.digests import chat_template

_MENTIONS_TOOLS: Final = re.compile(r"\btools\b")
_CHOSEN: Final = {
    "--tool-call-parser",
    "--tool-parser-plugin",
    "--enable-auto-tool-choice",
    "--no-enable-auto-tool-choice",
}


class Family(msgspec.Struct, frozen=True):
    """Models whose type matches `models` and whose template holds `mark`, both expressions."""

    parser: str
    models: str = ""
    mark: str = ""


# The first that matches is used.
FAMILIES: Final = (
    Family("openai", models="gpt_oss"),
    Family("kimi_k2", models="kimi_k2|deepseek_v3", mark=r"<\|tool_calls_section_begin\|>"),
    Family("deepseek_v3", models="deepseek_v[23]", mark="```json"),
    Family("deepseek_v31", models="deepseek_v3", mark="<\uff5ctool\u2581call\u2581begin\uff5c>"),
    Family("llama4_pythonic", models="llama4"),
    Family("llama3_json", models="mllama|llama", mark=r"python_tag|Environment: ipython"),
    Family("mistral", models="m[ai][sx]tral.*|pixtral", mark=r"\[(TOOL_CALLS|AVAILABLE_TOOLS)\]"),
    Family("granite4", models="granitemoehybrid"),
    Family("granite", models="granite.*", mark=r"<\|tool_call\|>"),
    Family("granite-20b-fc", models="gpt_bigcode", mark="<function_call>"),
    Family("internlm", models="internlm2", mark=r"<\|action_start\|>"),
    Family("jamba", models="jamba", mark="<tool_calls>"),
    Family("phi4_mini_json", models="phi3|phi4.*", mark=r"<\|tool\|>|functools"),
    Family("glm45", models="glm4.*", mark="<arg_key>"),
    Family("hunyuan_a13b", models="hunyuan.*", mark="<tool_calls>"),
    Family("minimax_m2", models="minimax.*", mark="<minimax:tool_call>"),
    Family("seed_oss", models="seed_oss", mark="<seed:tool_call>"),
    Family("step3p5", models="step3p5"),
    Family("step3", models="step3.*"),
    Family("ernie45", models="ernie4_5.*"),
    Family("olmo3", models="olmo3"),
    Family("longcat", models="longcat.*"),
    Family("apertus", models="apertus", mark=r"<\|tools_prefix\|>"),
    Family("lfm2", models="lfm2.*", mark=r"<\|tool_(call|list)_start\|>"),
    Family("functiongemma", models="gemma3.*", mark="<start_function_call>"),
    Family("gemma4", models="gemma4.*"),
    Family("mimo", models="mimo.*", mark="<function="),
    Family("qwen3_coder", models="qwen3.*", mark="<function="),
    Family("hermes", mark="<tool_call>"),
)


def choose_parser(folder: Path) -> str | None:
    """The parser for a checkpoint; None if it writes no calls, or unknown ones. Blocking.

    A chat template that never mentions tools does not tell the model about them, so native calls
    would never come.
    """
    template = chat_template(folder) or ""
    if not _MENTIONS_TOOLS.search(template):
        return None
    kind = str(_config(folder).get("model_type", ""))
    matching = (
        family.parser
        for family in FAMILIES
        if (not family.models or re.fullmatch(family.models, kind))
        and re.search(family.mark, template)
    )
    return next(matching, None)


def tool_flags(folder: Path, *, given: Collection[str], known: Collection[str]) -> Iterator[str]:
    """The flags for native tool calls; none where the user chose (`given`), or nothing fits."""
    supported = not known or "--tool-call-parser" in known
    if supported and not _CHOSEN & set(given) and (parser := choose_parser(folder)):
        yield from ("--enable-auto-tool-choice", "--tool-call-parser", parser)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
