"""RedBlackBench's names: its providers, and `python -m …redblackbench FILE.yaml`."""

from enginehouse.facades.redblackbench.providers import (
    AnthropicProvider,
    BaseLLMProvider,
    OpenAIProvider,
    OpenRouterProvider,
    ProviderConfig,
    VLLMProvider,
    create_provider,
)

__all__ = [
    "AnthropicProvider",
    "BaseLLMProvider",
    "OpenAIProvider",
    "OpenRouterProvider",
    "ProviderConfig",
    "VLLMProvider",
    "create_provider",
]
