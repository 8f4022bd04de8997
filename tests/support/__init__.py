"""What tests share: makers of checkpoints and adapters, stand-ins, and programs that they start."""

from pathlib import Path

SUPPORT = Path(__file__).parent
