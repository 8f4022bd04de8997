"""Python packages that do not fit each other."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
    Rule(
        K.PACKAGE_MISMATCH,
        r"all_special_tokens_extended|Tokenizer class (?P<class>\w+) does not exist or is not "
        r"currently imported|TokenizersBackend",
        "the transformers that is installed does not fit {engine} or the model's tokenizer "
        "{class}: one of them is made for version 4, the other for 5",
        "install the version that {engine} asks for (before its 0.13 or so: transformers<5; a "
        "checkpoint saved by version 5 needs 5), or build the environment again ({rebuild})",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"`?rope_(?:scaling|parameters)`?(?:'s)? .{0,60}(?:must|should|field)|rope_scaling should "
        r"have|KeyError: '(?:rope_type|rope_theta|rope_scaling|rope_parameters)'"
        r"|assert [^\n]{0,60}rope_(?:scaling|parameters|theta|type)"
        r"|has no attribute '?(?:rope_theta|rope_scaling|rope_parameters)|Unknown RoPE scaling type"
        r"|Unrecognized keys in `rope_",
        "the model's configuration of RoPE is of another version of transformers than the one that "
        "is installed",
        "install the transformers that the model's config.json names (transformers_version), or "
        "correct its rope_scaling with --hf-overrides",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"data did not match any variant of untagged enum|Converting from Tiktoken failed"
        r"|expected value of type .{0,40}tokenizers",
        "the tokenizer's file was written by a newer tokenizers or transformers than the one that "
        "is "
        "installed",
        "install a newer tokenizers and transformers, or take tokenizer.json from the base model",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"compiled using NumPy 1\.x cannot be run|numpy\.dtype size changed|_ARRAY_API not found"
        r"|`?np\.\w{1,20}`? was (?:removed|deprecated) in (?:the )?NumPy",
        "NumPy does not fit a package that was compiled or written for another version of it",
        "install the NumPy that the environment asks for (mostly numpy<2), or build it again: "
        "{rebuild}",
    ),
    Rule(
        K.WRONG_BUILD,
        r"operator torchvision::nms does not exist|torch and torchvision (?:were|are) compiled"
        r"|PyTorch and torchvision (?:were|was) compiled with different CUDA",
        "torchvision does not fit the torch in this environment: a CUDA build and a CPU build "
        "were mixed, or two versions",
        "make the environment again ({rebuild}; `enginehouse envs` "
        "names it); install nothing into it that brings a torch of its own",
    ),
    Rule(
        K.WRONG_BUILD,
        r"Distributed package doesn't have NCCL|without NCCL support",
        "this build of torch has no NCCL: it is one for CPUs, or for Windows",
        "install the CUDA build of torch, with {engine} from one source: {rebuild}",
    ),
    Rule(
        K.WRONG_BUILD,
        r"(?P<package>flashinfer[_-]python|sglang-kernel|sgl-kernel) (?:is installed with version "
        r"(?P<is>[^\s,]{1,30}), which is less than|with) (?:the )?minimum required version "
        r"(?P<least>[\w.]{0,30}\w)",
        "{package} {is} does not fit this {engine}, which needs {least}",
        "make the environment again: {rebuild}; install nothing into it",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"Cannot find a working triton installation|TritonMissing",
        "triton, which compiles kernels, is missing from the environment, or too old for its torch",
        "build the environment again: {rebuild}; or --enforce-eager, which compiles nothing",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"flashinfer-(?:cubin|jit-cache) version \([^)]{0,40}\) does not match"
        r"|(?:requires|but) [\w.\-]{1,40}[<>=!~]{1,2}[\w.,<>=!~ ]{1,60}(?:is required|, (?:but"
        r"|found))"
        r"|is already used by a Transformers config"
        r"|serious vulnerability issue in `torch\.load`"
        r"|`config_class` attribute that is not consistent|VersionConflict"
        r"|is required for a normal functioning of this module"
        r"|This version of \w+ requires|is incompatible with (?:the installed )?\w+ version",
        "two packages in the environment do not fit each other",
        "install the versions that the line names, or build the environment again: {rebuild}",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"StrictDataclass\w{0,20}ValidationError|Descriptors cannot (?:not )?be created directly"
        r"|Version mismatch: The cluster was started with|got multiple values for argument"
        r"|PydanticUserError|PydanticSchemaGenerationError|pydantic-core version"
        r"|No module named '(?P<module>(?:vllm|sglang|torch|triton)\.[a-z][\w.]{1,80})'",
        "two packages in the environment are of versions that do not fit each other {module}",
        "install the versions that {engine} asks for, or build the environment again: {rebuild}",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"'(?P<class>\w{0,60}(?:Attention|DecoderLayer|Cache|Embedding))' object has no attribute "
        r"'(?P<what>\w{1,80})'",
        "code that was written for another version of transformers asks its {class} for {what}: "
        "mostly the model's own code (trust_remote_code), or a plug-in",
        "install the transformers that the model's config.json names (transformers_version), or "
        "take a newer revision of the model",
        vague=True,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"cannot import name '(?P<what>[^']{1,80})' from (?:partially initialized module "
        r")?'(?P<name>[\w.]{1,120})'",
        "{name} has no {what}: it is of another version than the one that this was written for",
        "install the version of it that {engine} asks for, or build the environment again: "
        "{rebuild}",
    ),
)
