"""Which packages make up an environment of it, in which version."""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.programs import PAYLOADS

# What the server imports besides transformers. gguf and accelerate read GGUF files, sentencepiece
# and protobuf the tokenizers of older checkpoints.
_BESIDES = ("gguf", "accelerate", "peft", "xgrammar", "aiohttp", "sentencepiece", "protobuf")

INSTALLATION = PythonPackage(
    engine="hf",
    default_version="5.19.0",
    describe_payload=PAYLOADS / "describe_hf.py",
    variables=("ENGINEHOUSE_HF_PYTHON",),
    requirements=resources.files(__package__) / "requirements",
    distributions={
        "cpu": Distribution(
            package="transformers",
            besides=(*_BESIDES, "torch==2.13.0+cpu"),
            # The first three break `import transformers` beside a CPU torch. xgrammar depends on
            # triton, and uses it only on a GPU.
            excluded=("torchvision", "torchaudio", "torchcodec", "triton"),
        ),
        "cuda": Distribution(package="transformers", besides=(*_BESIDES, "torch==2.13.0")),
    },
)
