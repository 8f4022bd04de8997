"""RedBlackBench's configurations: the three of its document, and its other kinds, 40 in all."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "redblackbench"
DOCUMENTED = ("vllm_qwen3_quick_test", "vllm_qwen3_14b", "vllm_base_vs_lora")
_MODELS = {
    "gemini": "google/gemini-pro",
    "gpt_thinking": "openai/gpt-thinking",
    "kimi_thinking": "moonshotai/kimi-thinking",
    "qwen_(235b)": "qwen/qwen-235b-thinking",
}
_DECISIVE = {5: 3, 8: 5, 10: 10}


def documented(name: str) -> Path:
    """One of the three files of its document."""
    return FOLDER / f"{name}.yaml"


def scaling() -> dict[str, Any]:
    """One model against itself, 1 v 1 to 10 v 10: neither multipliers nor a default provider."""
    return {
        f"{label}_{size}v{size}": _match(f"scaling_{label}", size, model, model)
        for label, model in _MODELS.items()
        for size in (1, 2, 3, 5, 10)
    }


def mixed() -> dict[str, Any]:
    """Every two models, in both seat orders."""
    return {
        f"{one}-vs-{other}_5v5": _match(f"{one}-vs-{other}", 5, _MODELS[one], _MODELS[other])
        for one, other in permutations(_MODELS, 2)
    }


def others() -> dict[str, Any]:
    """Those with a default provider, with two vendors, with keys, and the three documented ones."""
    openai = {"type": "openai", "model": "gpt-mini", "temperature": 0.7}
    anthropic = {"type": "anthropic", "model": "claude", "temperature": 0.7}
    keyed = {"type": "openrouter", "api_key": "sk-or-not-a-key", "temperature": 0.2}
    full = {"num_rounds": 10, "team_size": 5, "multipliers": _DECISIVE}
    one_round = {"num_rounds": 1, "team_size": 1, "multipliers": {1: 1}, "seed": 42}
    plain = {"team_a": {"size": 5}, "team_b": {"size": 5}}
    return {
        "one_vendor": {**_head("one_vendor", 3), "default_provider": anthropic, "game": full}
        | plain,
        "quick_debug": {
            **_head("quick_debug", 1),
            "default_provider": openai,
            "game": {"num_rounds": 3, "team_size": 2, "multipliers": {3: 2}},
            "team_a": {"size": 2},
            "team_b": {"size": 2},
        },
        "two_vendors": {
            **_head("two_vendors", 5),
            "game": full,
            "team_a": {"size": 5, "provider": openai},
            "team_b": {"size": 5, "provider": anthropic},
        },
        "routed": {
            **_head("routed", 1),
            "default_provider": keyed,
            "game": full | {"seed": 42},
            "team_a": {"size": 5, "provider": keyed | {"model": "openai/gpt"}},
            "team_b": {"size": 5, "provider": keyed | {"model": "anthropic/claude"}},
        },
        "routed_smoke": {
            **_head("routed_smoke", 1),
            "default_provider": keyed | {"include_reasoning": True},
            "game": one_round,
            "team_a": {"size": 1, "provider": {"type": "openrouter", "model": "openai/gpt"}},
            "team_b": {"size": 1, "provider": {"type": "openrouter", "model": "google/gemini"}},
        },
    } | {name: yaml.safe_load(documented(name).read_text()) for name in DOCUMENTED}


def everything() -> Mapping[str, Any]:
    """All 40."""
    return scaling() | mixed() | others()


def _head(name: str, games: int) -> dict[str, Any]:
    return {"experiment_name": name, "output_dir": "results", "num_games": games}


def _match(name: str, size: int, one: str, other: str) -> dict[str, Any]:
    routed = {"type": "openrouter", "temperature": 1.0, "include_reasoning": True}
    return {
        **_head(f"{name}_{size}v{size}", 1),
        "game": {"num_rounds": 10, "team_size": size},
        "team_a": {"size": size, "provider": routed | {"model": one}},
        "team_b": {"size": size, "provider": routed | {"model": other}},
    }
