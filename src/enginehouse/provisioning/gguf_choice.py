"""Choosing one of several GGUF files: repositories hold one per quantisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from enginehouse.core.errors import ModelError

_PART = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$", re.IGNORECASE)
# What llama.cpp itself takes by default.
_USUAL = re.compile(r"(?<![A-Za-z0-9])Q4_K_M(?![A-Za-z0-9])", re.IGNORECASE)
_NOT_A_MODEL = ("mmproj", "imatrix")  # projectors of images, and statistics for quantising
_SHOWN = 12


def choose_gguf(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """The file, or all parts of a split one in order.

    It is the only model there, or the only one of quantisation Q4_K_M. Raises ModelError naming the
    candidates, or the number of missing parts.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        last = PurePosixPath(name).name
        if not last.lower().endswith(".gguf") or last.lower().startswith(_NOT_A_MODEL):
            continue
        part = _PART.match(name)
        models.setdefault(part["stem"] if part else name, []).append(name)
    if not models:
        raise ModelError(f"{where} holds no GGUF file", fix="check the name, or choose another")
    chosen = list(models) if len(models) == 1 else [m for m in models if _USUAL.search(m)]
    if len(chosen) != 1:
        shown = [parts[0] for parts in models.values()]
        raise ModelError(
            f"{where} holds {len(models)} GGUF models, and one of them must be chosen",
            why=", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else ""),
            fix="give the path of one file; `hf download OWNER/NAME FILE` fetches it from the hub",
        )
    return whole(models[chosen[0]], where=where)


def whole(parts: Sequence[str], *, where: str) -> tuple[str, ...]:
    """All parts of one model, sorted. Raises ModelError if some are missing."""
    part = _PART.match(parts[0])
    if part and len(parts) != int(part["parts"]):
        raise ModelError(
            f"{where} lacks {int(part['parts']) - len(parts)} of the {int(part['parts'])} parts "
            f"of {part['stem']}",
            fix="copy or download them too, or wait until they are saved",
        )
    return tuple(parts)


def is_part(name: str) -> bool:
    """Whether a file is one part of a split model."""
    return _PART.match(name) is not None


def sibling_parts(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The parts among `names` of the split model that `name` is a part of, sorted."""
    mine = _PART.match(name)
    assert mine is not None
    matches = ((other, _PART.match(other)) for other in sorted(names))
    return tuple(other for other, match in matches if match and match["stem"] == mine["stem"])
