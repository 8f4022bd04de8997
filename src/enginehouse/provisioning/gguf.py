"""GGUF files, converted to checkpoints once: vLLM's own GGUF support is experimental."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path

from enginehouse.core.errors import ModelError
from enginehouse.provisioning import content_folders
from enginehouse.provisioning.digests import file_digest
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS, new_log, python_environ, run_program
from enginehouse.runtime.context import Context

CONVERTER_VERSION = 1
_MAGIC = b"GGUF"
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NEEDED = ("torch", "transformers", "gguf", "accelerate")


async def converted_checkpoint(
    file: Path,
    *,
    environment: EngineEnvironment,
    context: Context,
) -> Path:
    """The folder with `file` as a bfloat16 checkpoint, made once per content and transformers.

    The environment's Python converts it, and needs memory for the whole model. Safe across
    processes. Raises ModelError, naming the log.
    """
    _require_gguf(file)
    digest = await asyncio.to_thread(file_digest, file, layout=context.layout)
    maker = f"{CONVERTER_VERSION} {environment.packages.get('transformers')}"
    key = f"{file.stem}-{hashlib.sha256(f'{digest} {maker}'.encode()).hexdigest()[:12]}"
    parent, notify = context.layout.models, context.notify
    final = parent / key
    if final.is_dir():
        notify(f"model: {file.name} as a checkpoint, converted before")
        return final
    if missing := [name for name in _NEEDED if name not in environment.packages]:
        raise ModelError(
            f"{environment.executable} cannot convert a GGUF file",
            why=f"it lacks {', '.join(missing)}",
            fix=f"install them there, or use an environment that Enginehouse builds: "
            f"`enginehouse install {environment.engine}`",
        )

    def waiting() -> None:
        notify(f"another process is converting {file.name}; waiting for it")

    async with content_folders.claimed(parent, key, on_wait=waiting):
        if final.is_dir():
            return final
        folder = await asyncio.to_thread(content_folders.new_folder, parent, key)
        try:
            await _convert(file, folder, environment=environment, context=context)
            return await asyncio.to_thread(content_folders.publish, folder, parent, key)
        finally:
            content_folders.abandon(folder)


def _require_gguf(file: Path) -> None:
    with file.open("rb") as opened:
        magic = opened.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ModelError(
            f"{file} is not a GGUF file",
            why=f"it begins with {magic!r}, not {_MAGIC!r}",
            fix="download it again; a Git LFS pointer needs `git lfs pull`",
        )
    if _SPLIT.search(file.name):
        raise ModelError(
            f"{file} is one part of a split GGUF file",
            fix="join the parts first: llama-gguf-split --merge FIRST-PART OUTPUT.gguf",
        )


async def _convert(
    file: Path,
    folder: Path,
    *,
    environment: EngineEnvironment,
    context: Context,
) -> None:
    log = new_log(context.layout, f"convert-{file.stem}")
    context.notify(f"model: converting {file.name} to a checkpoint (log: {log})")
    env = python_environ(write_bytecode=environment.key is not None) | {"HF_HUB_OFFLINE": "1"}
    argv = [str(environment.executable), str(PAYLOADS / "convert_gguf.py"), str(file), str(folder)]
    finished = await run_program(argv, env=env, cwd=log.parent, log=log)
    if finished.returncode:
        raise ModelError(
            f"{file} could not be converted",
            why=finished.why(),
            fix="transformers does not support every architecture's GGUF form: use the original "
            "checkpoint instead",
            log=log,
        )
    made = json.loads(finished.output.splitlines()[-1])
    context.notify(
        f"model: {made['architecture']}, {made['parameters'] / 1e6:.0f} M parameters, "
        f"converted in {made['seconds']} s"
    )
