"""What configurations, constructors and platforms refuse, by the words that they all use.

Known failures have rules of their own; these come after them, and say what kind of refusal it is.
"""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind
_ERROR = r"(?:^|\n)(?:\w+\.){0,8}(?:\w{0,40}Error|AssertionError|Exception): "
_DTYPE = r"(?:torch\.)?(?:b?float16|bf16|fp16|float32|half)"
# Words of an error that is about something else than what was asked for.
_NOT_OF_VERSIONS = (
    r"(?![^\n]{0,300}(?:[Pp]ython ?\d|[Vv]ersion \d|transformers[ <>=]{1,2}\d|numpy|[Dd]river"
    r"|torch(?:vision)?[ <>=]{1,2}\d|CUDA \d|model type|architecture|sharding))"
)


RULES = (
    Rule(
        K.UNSUPPORTED_DTYPE,
        rf"[Yy]our setup doesn't support bf16|\b{_DTYPE}\b[^\n]{{0,40}}(?:is|are) not supported"
        rf"|does not support (?:dtype )?{_DTYPE}\b"
        rf"|[Uu]nsupported (?:torch )?d(?:ata ?)?type\b|accuracy known issue[^\n]{{0,60}}{_DTYPE}",
        "the model or the device cannot be computed with in that type of number",
        "--dtype with another one: bfloat16, float16 or float32",
        vague=True,
    ),
    Rule(
        K.PARALLELISM,
        r"assert [^\n]{0,120}% ?[\w.()]{0,60}(?:tp|ep|pp|world|parallel)\w{0,20}[^\n]{0,20}== 0"
        r"|(?:[Ll]ocal rank|local_rank|device_id|--device-ids index) \d{1,4} is out of "
        r"(?:bounds|range)"
        r"|exceeds the number of (?:visible|available) \w{1,8} ?(?:devices|GPUs)"
        r"|Error (?:setting \w{1,40}|computing (?:assigned_physical_gpu_ids|device indices))[^\n]"
        r"{0,40}local range|(?:tp|pp|dp|ep)_size[^\n]{0,60}(?:must|should)[^\n]{0,20} (?:divi|be)"
        r"|(?:more|larger|greater) than the (?:number of )?(?:available|visible) (?:GPUs|devices)",
        "the model, or the processes that were asked for, cannot be shared out among these GPUs",
        "lower tensor, pipeline, data or expert parallelism to what the GPUs and the model's heads "
        "allow, or show more GPUs (CUDA_VISIBLE_DEVICES)",
        vague=True,
    ),
    Rule(
        K.WRONG_VALUE,
        r"(?i:\blora\b[^\n]{0,100}(?:must be|not enabled|is invalid|exceeds|greater than))"
        r"|max_(?:cpu_)?loras \("
        r"|(?:speculative|num_speculative_tokens|prompt_lookup|[Dd]raft model)[^\n]{0,160}"
        r"(?:must|should|requires?\b|not provided|cannot be|greater than|does not match)"
        r"|[Uu]nknown speculative method|looks like a file path, but it failed to be opened"
        r"|[Tt]arget and draft model should|mutually exclusive"
        r"|Load format `?\w{1,40}`? is not supported|does not support (?:`--|--)\w"
        r"|[Mm]ax_tokens_per_mm_item[^\n]{0,40}is larger than"
        r"|exceeds the pre-allocated encoder cache size"
        r"|^error: option|option '--[\w\-]{1,60}' (?:requires|is)",
        "an option has a value that {engine} does not take, or that does not go with another one",
        "see what the line says of it; correct the option, or leave it out",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        rf"{_ERROR}{_NOT_OF_VERSIONS}[^\n]{{0,300}}(?:(?:is|are) (?:currently )?(?:un|not (?:yet "
        rf"|currently )?)"
        r"supported|(?:do|does|did) not (?:currently |yet )?support\b"
        r"|[Uu]nsupported (?!operand|format)\w"
        r"|(?:currently )?only supports?\b|(?:is|are) (?:currently )?only (?:supported|available)"
        r"|(?:not compatible|incompatible) with|not (?:yet )?implemented"
        r"|cannot be (?:used|combined|enabled) (?:together )?(?:with|when|on))"
        r"|validation error for \w{1,60}[^\n]{0,20}\n[^\n]{0,300}(?:not (?:yet |currently )?"
        r"supported|not support|only supports?\b|incompatible|not compatible)",
        "{engine} cannot do that with this model, with another option, or on this device",
        "leave the option out, or take a newer {engine}, another model or another device",
        vague=True,
    ),
    Rule(
        K.WRONG_VALUE,
        r"\d{1,4} validation errors? for \w{0,60}(?:Config|Args|Params)\b"
        r"(?![^\n]{0,40}\n[^\n]{0,200}(?:failed to be inspected|[Aa]rchitecture|[Tt]okenizer"
        r"|[Rr]epo"
        r"|Transformers|import|GPU|CUDA))"
        rf"|{_ERROR}(?:[Ii]nvalid|[Uu]nknown|[Uu]nrecognized|[Uu]nexpected) [^\n]{{0,200}}"
        r"(?:[Ee]xpected|[Vv]alid \w{1,20} (?:are|is)|[Ss]upported|[Aa]vailable|[Mm]ust be|--\w)"
        rf"|{_ERROR}[`'\"]?(?:--[a-z][\w\-]{{2,60}}|max_\w{{2,40}}|gpu_memory_utilization"
        r"|mem_fraction_static|\w{2,40}_(?:parallel_size|backend|mode|parser|seqs))\b[^\n]{0,60} "
        r"(?:must|should|cannot|has to|needs to|requires?|is required)\b"
        rf"|{_ERROR}[^\n]{{0,120}}\bmust be one of\b"
        rf"|{_ERROR}[^\n]{{0,120}}(?:can only be (?:set|used)|[Pp]lease (?:specify|set|provide)"
        r" (?:`?--|an? |the )|is not a valid (?:value|option|choice))",
        "an option has a value that {engine} does not take, or that does not go with another one",
        "see what the line says of it; correct the option, or leave it out",
        vague=True,
    ),
    Rule(
        K.START_METHOD,
        r"signal only works in main thread|daemonic processes are not allowed to have children"
        r"|cannot be called from a running event loop|event loop is already running"
        r"|UnsupportedOperation: fileno|[Cc]an(?:no|')t pickle ",
        "the program that makes the engine does so where it cannot start processes: in a notebook, "
        "a thread, a daemon process or an event loop",
        "serve the model with `enginehouse serve`, or make the engine in the main thread of a "
        'program of its own, under `if __name__ == "__main__":`',
        vague=True,
    ),
    Rule(
        K.TOO_SLOW,
        r"(?:failed|not) to (?:start|become ready|report[^\n]{0,40}) (?:in time|within)"
        r"|[Ss]erver failed to start (?:in time|within)|not receive response from front-end process"
        r"|[Tt]imed out waiting for (?:llama runner|the server|engine|server)"
        r"|(?:not|n't) (?:become )?ready (?:after|within|in) \d",
        "starting took longer than something waits for it; what started had not failed yet",
        "look at the log of what was starting, in case it hangs; else wait longer (a larger "
        "--start-timeout), or put the weights on a faster disk",
        vague=True,
    ),
    Rule(
        K.NOT_WRITABLE,
        r"No usable temporary directory|WinError 1314|PermissionError at \S{1,300} when downloading"
        r"|[Pp]ermission denied[^\n]{0,40}(?:cache|folder|directory)",
        "a folder or file cannot be read or written by the user that the engine runs as",
        "give that user the rights, or name other folders (HF_HOME, TMPDIR)",
        vague=True,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"^TypeError: [\w.]{1,120}\(\) (?:got an unexpected keyword argument|missing \d+ required"
        r"|takes \d+ (?:positional|required))"
        r"|[Pp]lease (?:upgrade|update|downgrade) (?:your |the )?`?(?:transformers|vllm|sglang"
        r"|triton|torch|flashinfer|huggingface|tokenizers|mistral)"
        r"|requires? `?(?:transformers|torch|triton|flashinfer[\w\-]{0,12}|mistral[_\-]common"
        r"|huggingface[_\-]hub)`? ?(?:version |[<>=])"
        r"|Tokenizer class '?\w{1,80}'? (?:specified in|is not currently)"
        r"|Could not find module \w{1,80} in `transformers`",
        "two packages of the environment do not fit each other, most likely transformers and "
        "{engine}, or the model's own code and transformers",
        "install the versions that {engine} asks for, or build the environment again: {rebuild}",
        vague=True,
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"KeyError: '[\w.]{0,80}\b(?:(?:layers?|blocks?|h)\.\d{1,4}\.[\w.]{0,120}"
        r"(?:weight|bias|scale|norm|proj|zeros)\w{0,20}"
        r"|(?:lm_head|embed_tokens|embeddings|score|norm)\.(?:weight|bias))'",
        "the checkpoint has a weight that {engine}'s class for this architecture does not expect, "
        "or lacks one",
        "see that config.json belongs to these weights, and how they were saved (merged? "
        "quantized?); a newer {engine} may know the variant",
        vague=True,
    ),
    Rule(
        K.COMMUNICATION,
        r"(?:^|\n)(?:socket\.)?gaierror: (?P<why>[^\n]{1,120})",
        "a host's name has no address here: this machine's own, another node's, or one that is "
        "asked for the way to the network ({why})",
        "see that names are resolved (/etc/hosts, /etc/resolv.conf; in a container its network), "
        "and name addresses: VLLM_HOST_IP, MASTER_ADDR, --host",
        vague=True,
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"(?:[Nn]o|detect) (?:supported )?config (?:format|file) |Unrecognized video processor"
        r"|does not appear to have \S|tokenizer\.chat_template is not set|default chat template is "
        r"no longer allowed|Can't find a checkpoint index"
        r"|[Qq]uantization config(?:uration)? [^\n]{0,20}not found"
        r"|does not contain (?:a )?(?:config|tokenizer|model)[\w.]{0,20}",
        "the model's folder lacks its configuration, its weights or its tokenizer, or a part",
        "fetch it again, or copy what is missing (config.json, tokenizer.json, "
        "tokenizer_config.json, *.safetensors) from the base model's folder",
        vague=True,
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"is not a valid git identifier|Can't load the model for '|specific connection error when "
        r"trying to load",
        "the model, or this revision of it, was not found: neither a folder, nor on the hub",
        "check the spelling: a folder's path, or owner/name and a revision; a private model needs "
        "HF_TOKEN",
        vague=True,
    ),
)
