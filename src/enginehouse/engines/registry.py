"""The engines there are. Listing them imports none."""

from __future__ import annotations

from enginehouse.core.registry import Registry

ENGINES = Registry("engine", {"vllm": "enginehouse.engines.vllm:VllmEngine"})
