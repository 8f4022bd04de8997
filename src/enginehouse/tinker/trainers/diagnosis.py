"""How the log of the trainer over transformers is read; its rules are those of all engines."""

from __future__ import annotations

import re

from enginehouse.diagnosis import KERNEL, LogProfile, Surroundings

_LESS = "a smaller base model, or fewer tokens in a batch"

PROFILE = LogProfile(
    name="trainer",
    title="transformers",
    marks=re.compile(r"INFO [\d, :-]+ (?:transformers [\d.]+, torch |ready: )"),
    ready=re.compile(r"INFO [\d, :-]+ ready: "),
    stopped=re.compile(r"has closed the connection: stopping$"),
    survived=re.compile(r"(?:create|compute|optim_step|drop_gradients|save|load|unload) failed$"),
    killed_fix=f"{KERNEL}; if so, use {_LESS}",
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install trainer`",
        less_gpu_memory=f"check with `nvidia-smi` what else uses it; otherwise use {_LESS}",
    ),
)
