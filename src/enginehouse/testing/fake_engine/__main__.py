"""`python -m enginehouse.testing.fake_engine`: vLLM's command line, no model."""

from __future__ import annotations

import sys

from enginehouse.testing.fake_engine.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
