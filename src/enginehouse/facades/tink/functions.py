"""Tink's functions, which share one client."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import SampleResponse, TokenLogprob
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.facades.tink.client import Client, connected
from enginehouse.facades.tink.configuration import VLLMConfig
from enginehouse.facades.tink.sending import save_like
from enginehouse.runtime.blocking import Portal

# TRL's former and current names of a regular expression that the answer must match
_REGEX = {"guided_decoding_regex", "structured_outputs_regex"}


class VLLMClient(msgspec.Struct, frozen=True, kw_only=True):
    """The server in use."""

    base_url: str
    model: str
    vllm_version: str | None


class _Shared:
    """The shared client, opened when it is first needed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.updating = threading.Lock()
        self.config: VLLMConfig | None = None
        self.held: Portal[Client] | None = None

    def open(self, given: VLLMConfig | Mapping[str, Any] | None = None) -> Portal[Client]:
        with self.lock:
            if self.held is not None and given is None:
                return self.held
            config = VLLMConfig.of(given)
            if self.held is None or config != self.config:
                held = Portal(lambda: connected(config), name="Tink's vLLM client")
                self.close()
                self.held, self.config = held, config
            return self.held

    def close(self) -> None:
        with self.lock:
            held, self.held = self.held, None
        if held is not None:
            held.close()


_shared = _Shared()


def initialize_vllm_client(config: VLLMConfig | Mapping[str, Any] | None = None) -> VLLMClient:
    """Connect to a running vLLM; None uses VLLM_BASE_URL and so on (see VLLMConfig).

    Waits for the server as long as the configuration says. Idempotent; a different configuration
    makes a new connection, without the registered adapters. Raises UnreachableError (a
    ConnectionError), ConfigurationError, and WireError for a server that cannot be used.
    """

    async def described(client: Client) -> VLLMClient:
        server = client.server
        return VLLMClient(
            base_url=server.base_url, model=server.models[0], vllm_version=server.version
        )

    return _shared.open(config).call(described)


def close_vllm_client() -> None:
    """Close the connection; the server and its adapters stay. Idempotent.

    In-flight calls of other threads raise RuntimeError. The end of the interpreter closes it, too.
    """
    _shared.close()


def get_client_info() -> dict[str, Any]:
    """Server, limits and adapters; `available` says whether the server answers now.

    Without a connection, `initialized` and `available` are false.
    """
    with _shared.lock:
        held = _shared.held
    if held is None:
        return {"initialized": False, "available": False, "active_loras": 0, "lora_adapters": []}
    return held.call(Client.info)


def generate_with_vllm(  # noqa: PLR0913, PLR0917 (Tink's)
    prompts: Sequence[str],
    lora_adapter_id: str | None = None,
    n: int = 1,
    max_tokens: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    **generation_kwargs: Any,
) -> dict[str, Any]:
    """`n` completions of each prompt, by the adapter of that name or the base model.

    `generation_kwargs` are fields of SamplingParameters, or are passed to vLLM unchanged. The
    result has, per prompt, `prompt_ids` and `prompt_logprobs` (None unless requested; the first
    token's is None), and per completion, in the order of the prompts, `completion_ids`,
    `completions` (the texts) and `logprobs` (natural, of the completion's tokens).

    Raises UnknownModelError for an adapter that is not registered, ConfigurationError, and
    WireError for a failed request.
    """
    if isinstance(prompts, str):
        raise ConfigurationError("prompts must be a list of texts", fix="give [prompt]")
    if top_k < -1:
        raise ConfigurationError("top_k must be at least -1 (which is off)")
    parameters = _parameters(
        generation_kwargs,
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=max(top_k, 0),
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    responses = _shared.open().call(
        lambda client: client.generate(prompts, adapter=lora_adapter_id, parameters=parameters)
    )
    return _result(responses, prompt_logprobs=parameters.prompt_logprobs is not None)


def _parameters(given: Mapping[str, Any], **fields: Any) -> SamplingParameters:
    further = dict(given)
    fields["logprobs"] = int(further.pop("logprobs", 0) or 0)
    if isinstance(stop := further.get("stop"), str):
        further["stop"] = [stop]
    if isinstance(further.get("prompt_logprobs"), bool):
        further["prompt_logprobs"] = 0 if further["prompt_logprobs"] else None
    for name in _REGEX & further.keys():
        if name == "guided_decoding_regex":
            warnings.warn(f"{name} no longer exists: write structured_outputs_regex", stacklevel=3)
        if (regex := further.pop(name)) is not None:
            fields["structured"] = StructuredOutput(regex=regex)
    known = set(SamplingParameters.__struct_fields__)
    extra = further.pop("extra", {}) | {k: v for k, v in further.items() if k not in known}
    ours = {name: value for name, value in further.items() if name in known and value is not None}
    if "stop" in ours:
        ours["stop"] = tuple(ours["stop"])
    return SamplingParameters(**fields, **ours, extra=extra)


def _result(responses: Sequence[SampleResponse], *, prompt_logprobs: bool) -> dict[str, Any]:
    completions = [completion for response in responses for completion in response.completions]
    return {
        "prompt_ids": [list(response.prompt_token_ids or ()) for response in responses],
        "completion_ids": [list(completion.token_ids or ()) for completion in completions],
        "completions": [completion.text for completion in completions],
        "logprobs": [_values(completion.logprobs or ()) for completion in completions],
        "prompt_logprobs": (
            [_values(response.prompt_logprobs or ()) for response in responses]
            if prompt_logprobs
            else None
        ),
    }


def _values(tokens: Sequence[TokenLogprob | None]) -> list[float | None]:
    return [None if token is None else token.logprob for token in tokens]


def register_lora_adapter(adapter_id: str, lora_path: str, *, prove: bool = True) -> None:
    """Check the PEFT folder, copy it, load it into the server, and prove that it has an effect.

    `adapter_id` then stands for the current content of the folder, whatever happens to the folder
    later. Registering it again replaces the content; in-flight requests are still answered by the
    old one. Any number may be registered: they are loaded when they are needed. An untrained
    adapter has no effect, and is registered with a warning.

    Raises NoAdapterError (a ValueError) for a folder without a fitting adapter, and AdapterError
    for one that the server refuses or that has no effect; the name then keeps its old content.
    """
    _shared.open().call(lambda client: client.register(adapter_id, lora_path, prove=prove))


def unregister_lora_adapter(adapter_id: str) -> bool:
    """Unload an adapter after its in-flight requests; False if there is none of that name.

    Raises AdapterError if the server refuses.
    """
    return _shared.open().call(lambda client: client.unregister(adapter_id))


def list_lora_adapters() -> list[dict[str, str]]:
    """The adapters this process has registered: `adapter_id`, `lora_path` as given, `digest`."""
    return _shared.open().call(Client.adapters)


def init_communicator(device: Any = 0) -> None:  # noqa: ARG001 (Tink's)
    """Check that the server's weights can be updated from here; opens nothing, and no NCCL.

    Weights go through the disk; `device` has no effect. This needs a server on this machine that
    was started from a checkpoint's folder with vLLM's development endpoints, as by
    `enginehouse serve MODEL --enable-weight-swap`. vLLM's own transfer, without the disk, needs
    vLLM in the trainer's environment: see `enginehouse.training.WeightSender`. Raises WeightsError
    or ModelError, saying what is missing.
    """
    _shared.open().call(Client.communicate)


def update_model_weights(model: Any) -> None:
    """Make the server answer with the current weights of `model`, a transformers or PEFT model.

    They are saved as safetensors in the server's types, checked against the served checkpoint, and
    swapped in: in-flight requests finish first, and new ones wait. They stay on disk until the next
    update, for restarts. A PEFT model is merged. Calling `init_communicator` before is optional.
    There is one update at a time; other threads wait.

    Blocks. Raises what `init_communicator` does, ModelError for a model that does not fit, and
    WeightsError, which says whether the old weights were restored.
    """
    with _shared.updating:
        held = _shared.open()
        served = held.call(Client.swappable)

        async def folder_of(client: Client) -> Any:
            return client.new_folder()

        folder = held.call(folder_of)
        save_like(model, served, folder=folder)
        held.call(lambda client: client.swap(folder))


def close_communicator() -> None:
    """Undo `init_communicator`, which opens nothing. Idempotent."""
    _shared.open().call(Client.stop_communicating)


def reset_prefix_cache() -> None:
    """Make the server drop every cached prefix, and check that it did.

    Raises WeightsError if it did not, for example because of in-flight requests, and
    UnsupportedError for a server without that endpoint.
    """
    _shared.open().call(Client.reset_prefix_cache)
