"""Which options give a server endpoints that change it while it runs."""

from __future__ import annotations

from enginehouse.engines import arguments
from enginehouse.engines.options import ServerOptions

LORA_FLAG = "--enable-lora"


def is_administered(options: ServerOptions) -> bool:
    """Whether adapters can be loaded into the server, or its weights replaced, while it runs."""
    if options.enable_lora or options.enable_weight_swap:
        return True
    words = arguments.split(options.extra_args)
    return any(word.replace("_", "-") == LORA_FLAG for word in words)
