"""The trainer on a real model, compared with PEFT: `… MODEL OUT` writes an adapter to OUT.

As trainer_checks.py; ids are those of the tiny models, which every vocabulary has.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.data import AdamStep, LoraSpec
from trainer_reference import compare_with_peft, request, run

# Adam moves every weight by the learning rate, whatever its gradient's size: with a smaller eps, a
# gradient that is zero but for rounding would move one to either side.
ADAM = AdamStep(learning_rate=5e-4, weight_decay=0.1, grad_clip_norm=0.5, eps=1e-6)
MODEL, OUT = map(Path, sys.argv[1:3])


def a_step_agrees_with_peft():
    """All modules, the tied output layer among them; the trained adapter is saved."""
    spec = LoraSpec(rank=8, seed=1)
    asked = request("ours", "importance_sampling", lengths=(33, 60))
    engine = compare_with_peft(MODEL, spec, asked, steps=1, adam=ADAM)
    engine.save("ours", OUT, state=False)


if __name__ == "__main__":
    run(a_step_agrees_with_peft)
