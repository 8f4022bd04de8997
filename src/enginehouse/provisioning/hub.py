"""Models of the Hugging Face hub, downloaded before any server is started.

The settings of huggingface_hub apply (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE); they are read when called, not when imported.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, errors, get_token, snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils.tqdm import tqdm

from enginehouse.core.errors import ModelError, ModelGatedError, ModelNotFoundError
from enginehouse.runtime.context import Notify

Choose = Callable[[str, Sequence[str]], list[str]]

_LOOK_UP_SECONDS = 15.0
_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
_TOKEN_ADVICE = "set HF_TOKEN to a token of that account, or run `hf auth login`"
_PROGRESS_STEPS = 10


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A model's files in the hub's cache, at one commit."""

    folder: Path
    revision: str
    notes: tuple[str, ...] = ()


async def hub_snapshot(
    repository: str,
    *,
    revision: str | None,
    notify: Notify,
    choose: Choose | None = None,
) -> Snapshot:
    """Download `repository` into the hub's own cache, or find it there when offline.

    `choose` selects the files: given the repository's name and its files' names, it returns
    patterns. Raises ModelNotFoundError, ModelGatedError or ModelError with the reason and what to
    do. If this is cancelled, the download ends at the next block.
    """
    choose = choose or _patterns
    if _is_offline():
        return await asyncio.to_thread(
            _cached, repository, revision, notify, reason="HF_HUB_OFFLINE is set"
        )
    try:
        info = await asyncio.to_thread(_look_up, repository, revision)
    except _UnreachableError as error:
        return await asyncio.to_thread(_cached, repository, revision, notify, reason=str(error))
    return await _download(repository, info, revision=revision, notify=notify, choose=choose)


class _UnreachableError(Exception):
    """The hub did not answer, or not like a hub."""


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def _cache() -> Path:
    if own := os.environ.get("HF_HUB_CACHE"):
        return Path(own).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _is_offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE")
    if value is None:
        return bool(constants.HF_HUB_OFFLINE)
    return value.upper() in constants.ENV_VARS_TRUE_VALUES


def _look_up(repository: str, revision: str | None) -> ModelInfo:
    """The repository's metadata, after a check that its files may be downloaded too."""
    api = HfApi(endpoint=_endpoint())
    try:
        info = api.model_info(
            repository, revision=revision, timeout=_LOOK_UP_SECONDS, files_metadata=True
        )
        if info.gated:
            api.auth_check(repository)
    except errors.HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise _UnreachableError(
                f"the hub answers with status {error.response.status_code}"
            ) from error
        raise _refusal(error, repository, revision) from error
    except (HTTPError, errors.OfflineModeIsEnabled) as error:
        raise _UnreachableError(
            f"the hub cannot be reached ({type(error).__name__}: {error})"
        ) from error
    except ValueError as error:
        raise _UnreachableError(f"{_endpoint()} does not answer like a hub: {error}") from error
    return info


def _refusal(error: errors.HfHubHTTPError, repository: str, revision: str | None) -> ModelError:
    page = f"{_endpoint()}/{repository}"
    has_token = get_token() is not None
    if isinstance(error, errors.GatedRepoError):
        return ModelGatedError(
            f"the model {repository} is gated",
            why=(
                "the account of your token has not been granted access"
                if has_token
                else "the hub was asked without a token"
            ),
            fix=f"accept its conditions at {page}, then {_TOKEN_ADVICE}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(
            f"the model {repository} has no revision {revision}",
            fix=f"check what follows @: a branch, tag or commit of {page}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the hub has no model {repository}",
            why="it does not exist, or it is private and "
            + ("your token may not see it" if has_token else "the hub was asked without a token"),
            fix=f"check the spelling of {repository!r}; if it is private, {_TOKEN_ADVICE}",
        )
    if error.response.status_code in {401, 403}:
        return ModelGatedError(
            f"the hub refuses the model {repository}",
            why=error.server_message or f"status {error.response.status_code}",
            fix=f"check your access at {page}, and {_TOKEN_ADVICE}",
        )
    return ModelError(
        f"the hub does not serve the model {repository}",
        why=error.server_message or f"status {error.response.status_code}",
        fix=f"look at {page}",
    )


async def _download(
    repository: str, info: ModelInfo, *, revision: str | None, notify: Notify, choose: Choose
) -> Snapshot:
    assert info.sha is not None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    patterns = choose(repository, list(sizes))
    wanted = {name for name in sizes if any(fnmatch(name, pattern) for pattern in patterns)}
    total = sum(sizes[name] for name in wanted)
    notify(
        f"model: {repository} at {info.sha[:12]} from the hub, "
        f"{len(wanted)} files, {total / 1e9:.2f} GB"
    )
    stop = threading.Event()
    # Not by commit, so that the cache knows offline which commit the branch stood for.
    download = partial(
        snapshot_download,
        repository,
        revision=revision,
        cache_dir=_cache(),
        endpoint=_endpoint(),
        allow_patterns=patterns,
        tqdm_class=_progress_class(notify, stop),
    )
    task = asyncio.get_running_loop().run_in_executor(None, download)
    try:
        folder = Path(await asyncio.shield(task))
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        raise
    except errors.HfHubHTTPError as error:
        raise _refusal(error, repository, revision) from error
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"the download of {repository} was interrupted",
            why=f"{type(error).__name__}: {error}",
            fix="run the same command again: the download continues where it stopped",
        ) from error
    return Snapshot(folder=folder, revision=folder.name)


def _patterns(repository: str, names: Sequence[str]) -> list[str]:
    """What to download: texts, and one form of the weights. Raises ModelError without weights."""
    top = [name for name in names if "/" not in name]
    safetensors = [name for name in top if name.endswith(".safetensors")]
    usual = [name for name in safetensors if not name.startswith("consolidated")]
    if "config.json" in top and (usual or safetensors):
        return _TEXTS + (usual or safetensors)
    if "config.json" in top and any(name.endswith(".bin") for name in top):
        return [*_TEXTS, *(name for name in top if name.endswith(".bin"))]
    if "adapter_config.json" in top:
        raise ModelError(
            f"{repository} is a LoRA adapter, not a model",
            why="it has adapter_config.json, but no model",
            fix="give its base model, with enable_lora, and load the adapter into it",
        )
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        raise ModelError(
            f"{repository} holds GGUF files, and one of them must be chosen",
            fix=f"download one (`hf download {repository} {gguf[0]}`) and give its path",
        )
    raise ModelError(
        f"{repository} holds no language model",
        why="it lacks config.json or weights (*.safetensors, *.bin)",
        fix="check the name: some repositories hold only data or other forms of weights",
    )


def _cached(repository: str, revision: str | None, notify: Notify, *, reason: str) -> Snapshot:
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, cache_dir=_cache(), local_files_only=True
            )
        )
    except errors.IncompleteSnapshotError as error:
        folder = Path(error.snapshot_path)  # as ours always are: we fetch one form of the weights
    except (errors.LocalEntryNotFoundError, ValueError) as error:
        raise ModelNotFoundError(
            f"the model {repository} is not available",
            why=f"{reason}, and it is not in the hub's cache ({_cache()})",
            fix="unset HF_HUB_OFFLINE and check the network, the proxy and HF_ENDPOINT, "
            "or give the path of a checkpoint folder",
        ) from error
    notify(f"model: {repository} from the hub's cache, for {reason}")
    return Snapshot(
        folder=folder,
        revision=folder.name,
        notes=(f"taken from the hub's cache without asking whether it is current: {reason}",),
    )


def _progress_class(notify: Notify, stop: threading.Event) -> type[tqdm]:
    """A progress bar for snapshot_download that reports tenths and can end the download."""

    class Progress(tqdm):
        """Draws nothing; of snapshot_download's three bars it reports the one of bytes written."""

        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(  # type: ignore[no-untyped-call]
                *args, **(options | {"file": io.StringIO(), "disable": False})
            )
            self._reports = str(options.get("desc", "")).startswith("Reconstruct")
            self._reported = 0

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():
                raise InterruptedError
            drawn: bool | None = super().update(n)
            step = int(self.n / self.total * _PROGRESS_STEPS) if self.total else 0
            if self._reports and step > self._reported:
                self._reported = step
                notify(f"model: {self.n / 1e9:.2f} of {self.total / 1e9:.2f} GB")
            return drawn

        def display(self, *_: Any, **__: Any) -> bool:
            return True

    return Progress
