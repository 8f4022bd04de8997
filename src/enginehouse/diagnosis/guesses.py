"""Where no rule knows an error's text: a guess by the files that its traceback ends in."""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginehouse.diagnosis.events import Failure
from enginehouse.diagnosis.kinds import Diagnosis, FailureKind
from enginehouse.diagnosis.rule import Surroundings

# What Python says where code does not foresee a value; the kind does not follow from the file.
_NOT_A_SLIP = re.compile(
    r"\A(?![\s\S]{0,400}(?:NoneType|not supported between|unsupported operand|index out of range"
    r"|is not (?:iterable|callable|subscriptable)|values to unpack))"
)


@dataclass(frozen=True)
class _Guess:
    """`files` is searched for in the last `within` files, `names` in the exception's name."""

    files: re.Pattern[str]
    kind: FailureKind
    cause: str
    fix: str
    names: re.Pattern[str] = re.compile("")
    texts: re.Pattern[str] = _NOT_A_SLIP
    within: int = 4


K = FailureKind
_GUESSES = (
    _Guess(
        re.compile(r"/auto/configuration_auto\.py|/auto/auto_factory\.py|/models/registry\.py"),
        K.UNSUPPORTED_MODEL,
        "this {engine}, or its transformers, does not know the model's architecture",
        "take another version of it, or another engine; see `model_type` and `architectures` in "
        "the "
        "model's config.json",
        re.compile(r"KeyError"),
        within=2,
    ),
    _Guess(
        re.compile(r"flashinfer/jit/|torch/utils/cpp_extension|deep_gemm/jit|tvm_ffi/cpp"),
        K.TOOLCHAIN,
        "kernels could not be compiled for this GPU",
        "see that nvcc is there and as new as the CUDA of torch (`nvcc --version`, CUDA_HOME), and "
        "that g++ and ninja work; or choose an attention backend that compiles nothing",
    ),
    _Guess(
        re.compile(r"triton/(?:compiler|backends|runtime/build)|torch/_inductor/"),
        K.TOOLCHAIN,
        "compiling the model's kernels failed",
        "try --enforce-eager, which does without; then look at the compiler (gcc, Python's "
        "headers) and at the versions of triton and torch",
    ),
    _Guess(
        re.compile(r"pynccl|torch/distributed/|device_communicators/|nixl|custom_all_reduce"),
        K.COMMUNICATION,
        "the GPUs or nodes did not get in touch with each other",
        "start it again with NCCL_DEBUG=INFO and read what NCCL says; try NCCL_P2P_DISABLE=1, and "
        "see that NCCL_SOCKET_IFNAME names the right network",
    ),
    _Guess(
        re.compile(
            r"vllm/config(?:/\w+)?\.py|/arg_utils\.py|/server_args\.py|/cli_args\.py"
            r"|vllm/platforms/\w+\.py"
        ),
        K.WRONG_VALUE,
        "an option has a value that {engine} does not take here, or that does not go with another "
        "one",
        "see what the line says of it; correct the option, or leave it out",
        re.compile(r"(?:Value|Assertion|ArgumentType|Validation)Error"),
        re.compile(r"\A(?![\s\S]{0,400}failed to be inspected)"),
        within=1,
    ),
    _Guess(
        re.compile(r"vllm/transformers_utils/\w+\.py"),
        K.MODEL_INCOMPLETE,
        "the model's folder lacks its configuration, or a part of it",
        "see that config.json (params.json of Mistral's own format) is there and whole; fetch the "
        "model again",
        re.compile(r"AssertionError|FileNotFoundError|KeyError"),
        within=1,
    ),
    _Guess(
        re.compile(r"/quantization/|/quantizers/"),
        K.QUANTIZATION,
        "the checkpoint is quantized in a way that this {engine} cannot compute with here",
        "unquantized weights, another quantization, or a newer {engine}",
        re.compile(r"(?:Value|Assertion|Key|Runtime|NotImplemented)Error"),
        within=2,
    ),
    _Guess(
        re.compile(r"/model_loader/|/models/\w+\.py$"),
        K.WEIGHTS_MISMATCH,
        "the checkpoint has a weight that {engine}'s class for this architecture does not expect, "
        "or lacks one",
        "see that config.json belongs to these weights, and how they were saved (merged? "
        "quantized? "
        "by another version of transformers?); a newer {engine} may know the variant",
        re.compile(r"KeyError|AssertionError|AttributeError"),
        re.compile(
            r"(?:layers?|blocks?|experts?|embed_tokens|lm_head|_proj|visual|model)\.[\w.]*|\.weight"
        ),
        within=3,
    ),
    _Guess(
        re.compile(r"vllm/platforms/interface\.py"),
        K.NO_GPU,
        "{engine} finds no GPU that it knows, and works on an unknown platform",
        "see whether `nvidia-smi` works here and CUDA_VISIBLE_DEVICES is right (in a container: "
        "--gpus all); on a machine without a GPU take a build for CPUs",
        re.compile(r"NotImplementedError"),
        within=1,
    ),
    _Guess(
        re.compile(r"rotary_embedding|/rope|modeling_rope_utils"),
        K.PACKAGE_MISMATCH,
        "the model's configuration of RoPE is of another version of transformers",
        "install the transformers that the model's config.json names (transformers_version)",
        re.compile(r"(?:Key|Attribute|Type|Value)Error"),
        within=2,
    ),
    _Guess(
        re.compile(r"/tokenization_\w+\.py|sentencepiece/"),
        K.MODEL_INCOMPLETE,
        "a file of the tokenizer is missing from the model's folder",
        "copy tokenizer.json, tokenizer_config.json and tokenizer.model from the base model's "
        "folder",
        re.compile(r"TypeError|OSError"),
        re.compile(r"NoneType|not a string|Not found"),
        within=2,
    ),
    _Guess(
        re.compile(r"/lora/"),
        K.WRONG_VALUE,
        "the LoRA adapter does not fit the model, or LoRA is not possible with it",
        "see that the adapter was made for this very model, and its rank and modules; start it "
        "without LoRA to compare",
        re.compile(r"(?:Value|Key|Assertion)Error"),
    ),
    _Guess(
        re.compile(r"/transformers/"),
        K.PACKAGE_MISMATCH,
        "this version of transformers does not fit {engine} or the model",
        "install the version of transformers that this {engine} asks for, or build the environment "
        "again: `enginehouse envs remove KEY`, `enginehouse install`",
        re.compile(r"(?:Attribute|Import|Type|Name|ModuleNotFound)Error"),
        within=2,
    ),
)


def guess(failure: Failure, *, around: Surroundings, evidence: str) -> Diagnosis | None:
    """The likely kind of an unknown error, said to be a guess; None where its files say nothing."""
    for raised in failure.raised:
        for distance, file in enumerate(reversed(raised.files), start=1):
            for known in _GUESSES:
                if (
                    distance <= known.within
                    and known.files.search(file)
                    and known.names.search(raised.name)
                    and known.texts.search(raised.text)
                ):
                    return _guessed(known, file, around, evidence)
    return None


def _guessed(known: _Guess, file: str, around: Surroundings, evidence: str) -> Diagnosis:
    short = "/".join(file.split("/")[-3:])
    return Diagnosis(
        kind=known.kind,
        evidence=evidence,
        cause=f"probably {known.cause.format(engine=around.engine)}: a guess, since no rule knows "
        f"this text, by where it was raised ({short})",
        fix=known.fix.format(engine=around.engine),
        guess=True,
    )
