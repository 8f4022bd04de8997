"""EleutherAI's lm-evaluation-harness, as a Harness."""

from __future__ import annotations

from enginehouse.harnesses.lm_eval.installation import INSTALLATION


class LmEval:
    """See Harness."""

    name = "lm-eval"
    installation = INSTALLATION
