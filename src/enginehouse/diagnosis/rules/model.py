"""Weights, quantization and how a model is shared out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule, Surroundings, groups

K = FailureKind


def _without_torch(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return {name: value.replace("torch.", "") for name, value in groups(found, around).items()}


def _capabilities(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = groups(found, around)
    return {n: f"{int(v) / 10:.1f}" if v.isdigit() else v for n, v in said.items()}  # 89 is 8.9


RULES = (
    Rule(
        K.PARALLELISM,
        r"[Tt]he choosen size (?P<size>\d{1,9}) is not compatible with sharding on (?P<shards>\d+)",
        "a weight of size {size} cannot be split among {shards} GPUs; a size of 1 means that the "
        "checkpoint is quantized in a way that cannot be split",
        "fewer GPUs (one, if the size is 1), or weights that are not quantized with bitsandbytes",
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"There is no module or parameter named '(?P<name>[^']{1,200})'"
        r"|weights were not initialized from (?:the )?checkpoint"
        r"|size mismatch for (?P<size>\S{1,120})"
        r"|ignore_mismatched_sizes|Attempted to load weight "
        r"\((?P<got>[^()]{1,60}(?:\([^()]{0,60}\))?)"
        r"|(?:loaded_weight|param(?:_data)?)\.(?:shape|size\(\))|Error\(s\) in loading state_dict"
        r"|[Uu]nexpected key\(s\) in state_dict"
        r"|(?:Missing|missing) key\(s\) in state_dict|shape mismatch[^\n]{0,40}weight"
        r"|weight[^\n]{0,60}shape mismatch",
        "names or shapes of the checkpoint's weights are not those that {engine}'s class for this "
        "architecture expects {name}{size}{got}",
        "see that config.json belongs to these weights, and how they were saved (merged? "
        "quantized? "
        "another framework's names?); a newer {engine} may know the variant",
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. "
        r"Supported dtypes: \[(?P<known>[^\]]{0,200})",
        "weights quantized with {method} cannot be computed with in {dtype}",
        "--dtype with one of: {known}",
        _without_torch,
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"\"\w{1,60}\" not implemented for '(?P<dtype>\w{1,30})'"
        r"|[Bb]float16 is (?:only )?(?:not )?supported on [^\n]{0,60}(?:compute capability|GPU)",
        "the device has no code to compute with this kind of number {dtype}",
        "on a CPU --dtype float32 or bfloat16; on an old GPU --dtype float16",
    ),
    Rule(
        K.QUANTIZATION,
        r"fp8e\w{3,8} data type is not supported|[Oo]nly sm ?\d{2,3}\+? (?:and \w{1,10} "
        r")?supports? "
        r"|fp8e\w{3,8} not supported",
        "the model or its KV cache is kept in FP8, which this GPU cannot compute with: it needs an "
        "Ada or Hopper GPU (compute capability 8.9 or 9.0)",
        "an unquantized checkpoint, another quantization (AWQ, GPTQ), or --kv-cache-dtype auto",
    ),
    Rule(
        K.QUANTIZATION,
        r"quantization method (?P<method>\S{1,60}) is not supported for the current GPU\. Minimum "
        r"capability: (?P<needs>\d+)\. Current capability: (?P<has>\d+)",
        "{method} needs a GPU of compute capability {needs}; this one has {has}",
        "use the model's unquantized weights, or a newer GPU",
        _capabilities,
    ),
    Rule(
        K.QUANTIZATION,
        r"model config \((?P<is>\S{1,60})\) does not match the quantization method [^(\n]{0,120}"
        r"\((?P<given>\S{1,60})\)",
        "the checkpoint is quantized with {is}, and --quantization says {given}",
        "leave --quantization out: it is read from the checkpoint",
    ),
    Rule(
        K.QUANTIZATION,
        r"quantiz\w{1,6} (?![^\n]{0,300}(?:pip|[Pp]lease) install)[^\n]{0,120}(?:not supported"
        r"|requires)"
        r"|Unknown quantization (?:method|type)[^\n]{0,80}|Invalid quantization method"
        r"|(?:input|output) size[^\n]{0,60}not aligned with the quantized weight"
        r"|(?:not divisible by|% ?)[^\n]{0,20}(?:min_thread_[nk]|group_size|block_[nk]|weight "
        r"quantization block)|input_size_per_partition|output_size_per_partition"
        r"|g_idx|desc_act|[Ff]ailed to find a kernel that can implement"
        r"|Quantization scheme is not supported|[Nn]o (?:compatible|suitable|valid) "
        r"(?:FP8|fp8|MoE|NVFP4|MXFP4|quant\w{0,10}|w4a16|scaled_mm) (?:kernel|backend)"
        r"|(?:Marlin|AWQ|GPTQ|FP8|NVFP4|MXFP4|CUTLASS\b|Machete|ExLlama)[^\n]{0,80}(?:"
        r"not supported|"
        r"does not support|only supports?|requires)|tile_[nk]_size"
        r"|compressed-tensors compatible scheme|type fp8\w{1,10} not supported"
        r"|only fp8 gemm is implemented|(?:fp8|int8|fp4|nvfp4|mxfp4|w8a8|scaled)[^\n]{0,40}"
        r"(?:gemm|mm|moe)\w{0,10} (?:is|are) not (?:yet )?(?:implemented|supported)"
        r"|[Ff]ailed to (?:initialize|run) [^\n]{0,30}(?:[Ff][Pp]4|[Ff][Pp]8|[Ii][Nn][Tt]8) gemm"
        r"|weight_scale\w{0,20}|weight_zero_point"
        r"|\.(?:absmax|qweight|qzeros|scales)\b|no attribute '(?:qweight|qzeros)'"
        r"|Cannot load `\w{1,20}` weight|No compiled cutlass_scaled_mm|% ?weight_block_size"
        r"|[Nn]o \w{1,10} MoE backend supports"
        r"|quantization method \S{1,40} is not supported|any of \[[^\]\n]{0,60}quant_method",
        "the checkpoint is quantized in a way that this {engine} cannot compute with here: the "
        "method is unknown, the GPU has no kernel for it, or its groups cannot be shared out "
        "among this many GPUs",
        "a smaller --tensor-parallel-size, if the line is about sizes; otherwise unquantized "
        "weights, another quantization, or a newer {engine} or GPU",
    ),
    Rule(
        K.QUANTIZATION,
        r"RuntimeError: Error (?P<what>Not Supported|Invalid Problem|Arch Mismatch"
        r"|Misaligned Operand|Invalid (?:Layout|Data Type))(?=\n|$)",
        "CUTLASS, which multiplies quantized weights here, refused ({what}): it has no kernel for "
        "this GPU or these shapes",
        "an unquantized checkpoint or another quantization, another --tensor-parallel-size, or a "
        "newer {engine}",
        vague=True,
    ),
    Rule(
        K.PARALLELISM,
        r"(?:AssertionError: )?(?P<what>\d{1,9}) is not divisible by (?P<size>\d{1,6})",
        "something of the model ({what} heads or columns) cannot be shared out among {size} GPUs",
        "a --tensor-parallel-size that divides {what}; --pipeline-parallel-size has no such rule",
    ),
    Rule(
        K.PARALLELISM,
        r"(?P<line>(?:num_\w{1,30}|heads?|hidden_size|vocab\w{0,12}|intermediate_size|\w{0,20}experts)"
        r"[^\n]{0,80}(?:must be|is not|not) divisible by[^\n]{0,60})"
        r"|(?P<many>[\w=. ]{1,60}(?:must be|is not|not) divisible by [^\n]{0,40}"
        r"(?:parallel|[et]p_size|world_size|GPUs)[^\n]{0,20})",
        "the model's parts cannot be shared out evenly among so many GPUs: {line}{many}",
        "another --tensor-parallel-size, one that divides that number; --pipeline-parallel-size "
        "has no such rule",
    ),
)
