"""What llama-server reads from its environment; launch files with its command are unknown."""

from __future__ import annotations

from enginehouse.engines.own_command import OwnCommand

OWN_COMMAND = OwnCommand(variables=("GGML_", "LLAMA_"))
