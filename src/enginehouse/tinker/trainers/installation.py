"""Which packages make up the environment of the trainer over transformers.

It holds no server: only what payloads/trainer imports, and what converts a GGUF model.
"""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.programs import PAYLOADS

# gguf and accelerate convert GGUF files, sentencepiece and protobuf older tokenizers with them.
_BESIDES = ("peft", "safetensors", "msgspec", "gguf", "accelerate", "sentencepiece", "protobuf")

INSTALLATION = PythonPackage(
    engine="trainer",
    default_version="5.19.0",
    describe_payload=PAYLOADS / "describe_trainer.py",
    variables=("ENGINEHOUSE_TRAINER_PYTHON",),
    requirements=resources.files(__package__) / "requirements",
    distributions={
        "cpu": Distribution(
            package="transformers",
            besides=(*_BESIDES, "torch==2.13.0+cpu"),
            # They break `import transformers` beside a CPU torch.
            excluded=("torchvision", "torchaudio", "torchcodec"),
        ),
        "cuda": Distribution(package="transformers", besides=(*_BESIDES, "torch==2.13.0")),
    },
)
