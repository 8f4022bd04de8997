"""Finding, fetching and reading a model."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
    Rule(
        K.MODEL_GATED,
        r"GatedRepoError|access a gated repo\b|is a gated repository|Cannot access gated repo"
        r"|Access to model \S{1,120} is restricted",
        "the hub gives this model only to accounts that accepted its conditions",
        "accept them on the model's page, then set HF_TOKEN to a token of that account",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"error downloading or loading vocab file|failed to download or load vocab"
        r"|openaipublic\.blob|(?:o200k|cl100k)_base\.tiktoken",
        "a file of the tokenizer's vocabulary is fetched from the network when it is first used, "
        "and could not be",
        "fetch it elsewhere and name its folder: TIKTOKEN_ENCODINGS_BASE for openai-harmony "
        "(o200k_base.tiktoken, cl100k_base.tiktoken), TIKTOKEN_CACHE_DIR for tiktoken",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"429 Client Error|Too Many Requests for url|5\d\d Server Error[^\n]{0,200}huggingface"
        r"|[Rr]ate limit[^\n]{0,60}(?:hub|huggingface)",
        "the hub refuses more requests for now, or does not work",
        "wait and try again; with HF_TOKEN more requests are allowed",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"Consistency check failed: file should be of size|IncompleteRead|incomplete download"
        r"|Error while downloading from|CAS service error|hf_transfer[^\n]{0,80}(?:error|failed)"
        r"|An error occurred while downloading using `hf_transfer`|DownloadError"
        r"|ChunkedEncodingError|Failed to download[^\n]{0,120}(?:cubin|artifact|http)",
        "a download broke off",
        "start it again: what is there is not downloaded twice; HF_HUB_ENABLE_HF_TRANSFER=0 or "
        "HF_HUB_DISABLE_XET=1 use the plain way",
    ),
    Rule(
        K.REMOTE_CODE,
        r"contains custom code which must be executed|requires you to execute the"
        r"|pass the argument `?trust_remote_code=True`?|setting `?trust_remote_code=True`?"
        r"|set(?:ting)? the option `?trust_remote_code=True`?|`--trust-remote-code`",
        "the model comes with Python code of its own, which is not run unasked",
        "read that code; if you trust it: --trust-remote-code",
    ),
    Rule(
        K.WRONG_VALUE,
        r"No such file or directory: '[^']{1,300}adapter_(?:config\.json|model\.\w{1,12})'"
        r"|Can't find 'adapter_config\.json'|No adapter found for|does not contain adapter_config",
        "a folder that was given as a LoRA adapter holds none",
        "name the folder with adapter_config.json and adapter_model.safetensors in it",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"does not appear to have (?:a file|files) named (?P<file>[^\n]{1,120}?)(?:\.? Checkout|$"
        r"|\n)"
        r"|[Nn]o file named (?P<weights>[^\s,]{1,120})|Should have a `model_type` key"
        r"|No model architectures are specified|No tokenizer file found"
        r"|Unable to find `model_type`|Unrecognized (?:image processor|processing class|feature "
        r"extractor) in|Invalid type of HuggingFace processor|TypeError: not a string"
        r"|No local weights found in|No \.\w{3,12} weights found for"
        r"|Found 0 files matching the pattern|Cannot find any model weights"
        r"|Couldn't instantiate the backend tokenizer"
        r"|Can't load (?:the )?(?:image processor|feature extractor|processor|tokenizer)"
        r"|[Nn]o (?:safetensors|checkpoint|weight) files? (?:found|matching)"
        r"|missing (?:weight|shard) files?|No such file or directory: '(?P<part>[^']{1,200}"
        r"(?:\.safetensors|\.bin|tokenizer[\w.]{0,20}|config\.json|params\.json|tekken\.json))'",
        "the model's folder lacks its configuration, its weights or its tokenizer "
        "{file}{weights}{part}: a copy or download that broke off, or only a part of a training "
        "checkpoint",
        "fetch it again, or copy what is missing (config.json, tokenizer.json, "
        "tokenizer_config.json, *.safetensors) from the base model's folder",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"Cannot find an appropriate cached snapshot|LocalEntryNotFoundError|OfflineModeIsEnabled"
        r"|[Ww]e couldn't connect to|outgoing traffic has been disabled|couldn't find (?:it"
        r"|them) in "
        r"the cached files",
        "the model is not on this machine, and the hub was not asked or did not answer",
        "give a checkpoint's folder; or unset HF_HUB_OFFLINE and fix the network or the proxy "
        "(HF_ENDPOINT names another hub)",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"RepositoryNotFoundError|RevisionNotFoundError|not a valid model identifier"
        r"|Repo id must (?:be in the form|use alphanumeric)"
        r"|Invalid repository ID or local directory"
        r"|HFValidationError|EntryNotFoundError|404 Client Error[^\n]{0,200}huggingface"
        r"|is not a local folder|Incorrect path_or_model_id|Can't load the configuration of"
        r"|(?:model|checkpoint) path [^\n]{0,120}does not exist",
        "the model was not found: neither a folder with a config.json, nor a handle that the hub "
        "knows",
        "check the spelling: a folder's path, or owner/name; a private model needs HF_TOKEN",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"(?:Max retries exceeded|NameResolutionError|Temporary failure in name resolution"
        r"|Name or service not known|ProxyError|SSLError|SSLCertVerificationError"
        r"|CERTIFICATE_VERIFY_FAILED|ConnectTimeout|ReadTimeout|Network is unreachable)"
        r"[^\n]{0,300}(?:huggingface|hf-mirror|modelscope|hf\.co|/resolve/)"
        r"|(?:huggingface|hf-mirror|modelscope|hf\.co)[^\n]{0,200}(?:Max retries exceeded|"
        r"NameResolutionError|Temporary failure in name resolution|Name or service not known|"
        r"ProxyError|SSLError|SSLCertVerificationError|ConnectTimeout|ReadTimeout|Read timed out|"
        r"Connection refused|Network is unreachable)",
        "the model is not on this machine, and the hub could not be reached",
        "give a checkpoint's folder; or fix the network, the proxy or its certificate "
        "(HF_ENDPOINT names another hub)",
    ),
    Rule(
        K.MODEL_GATED,
        r"40[13] Client Error[^\n]{0,200}huggingface"
        r"|Invalid (?:username or password|credentials|user token)",
        "the hub refuses: it wants a token, or another one",
        "set HF_TOKEN to a token of an account that may read the model",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"SafetensorError|[Hh]eader ?too ?(?:large|small)|InvalidHeader|MetadataIncompleteBuffer"
        r"|OverflowError: cannot fit 'int' into an index-sized|PytorchStreamReader failed"
        r"|is not a valid JSON file|invalid load key, '(?P<key>[^']{1,8})'"
        r"|git-lfs|Git LFS|Unable to load weights from (?:pytorch|tf) checkpoint"
        r"|UnpicklingError|unexpected end of data|file not fully covered"
        r"|unexpected EOF, expected \d|could not parse ModelProto|ParseFromArray\("
        r"|inline_container\.cc[^\n]{0,60}unexpected pos",
        "a file of the model is broken: cut off, or not what its name says",
        "compare the sizes with the source's and fetch it again; `git lfs pull` if it is a Git LFS "
        "pointer",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"JSONDecodeError|(?:Expecting (?:value|property name[^:\n]{0,40}|'.' delimiter)|Extra data"
        r"|Unterminated string starting at|Invalid (?:control character at|\\escape)): line "
        r"\d{1,9} column \d",
        "a file is not JSON, although its name says so: cut off, empty, or a Git LFS pointer",
        "look at the file that the traceback reads; fetch the model again, or `git lfs pull`; a "
        "broken cache (~/.cache/vllm, ~/.cache/huggingface) can be removed",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[[^\]\n]{0,300}\]) are not supported"
        r"|has model type `(?P<type>[^`]{0,80})` but Transformers does not recognize"
        r"|does not recognize this (?:architecture|model)"
        r"|(?P<gone>Model architecture \S{1,80} (?:was supported|is not supported)[^\n]{0,200})"
        r"|Cannot find model module\. '(?P<missing>\w+)' is not a registered model"
        r"|Unrecognized (?:configuration class|model)(?P<class>[^\n]{0,120})"
        r"|(?P<auto>\w{1,80}) is not supported for Auto\w+"
        r"|Unsupported (?:model )?architectures?:? (?P<arch>[^\n]{1,80})"
        r"|Unknown gguf model_type: (?P<ggtype>\S{1,40})"
        r"|GGUF model with architecture (?P<gguf>\S{1,40}) is not supported"
        r"|KeyError: '(?P<key>[a-z][a-z0-9_]{1,30}(?:_moe|_vl|_mtp|_next|_text|_omni))'"
        r"|has no vLLM implementation and the Transformers implementation is not compatible"
        r"|The Transformers implementation of [^\n]{1,120} is not compatible with vLLM"
        r"|Unsupported model type `?'?(?P<tgi>[\w.\-]{1,60})"
        r"|generates no text|No module named 'transformers\.models\.(?P<module>\w{1,60})'",
        "this {engine}, or its transformers, does not know the model's architecture "
        "{names}{type}{gone}{missing}{class}{auto}{arch}{ggtype}{gguf}{key}{tgi}{module}",
        "take an engine that does: another version (`enginehouse install ENGINE --version …`, or "
        "--python with an install of your own), or --engine vllm, hf or llamacpp; see "
        "`architectures` in the "
        "model's config.json",
    ),
)
