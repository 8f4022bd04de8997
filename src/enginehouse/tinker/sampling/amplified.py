"""A copy of an adapter whose effect is many times as large: its tensors, with another alpha."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from enginehouse.core.errors import AdapterError
from enginehouse.weights.peft_folder import CONFIG, TENSORS


@contextmanager
def amplified(folder: Path, *, times: float) -> Iterator[Path]:
    """The copy's folder, beside `folder`, for the length of the block. Blocking, but short.

    Raises AdapterError if it cannot be written.
    """
    with ExitStack() as stack:
        try:
            directory = tempfile.TemporaryDirectory(prefix=".amplified-", dir=folder.parent)
            copy = Path(stack.enter_context(directory))
            config = json.loads((folder / CONFIG).read_bytes())
            config["lora_alpha"] *= times
            (copy / CONFIG).write_text(json.dumps(config))
            _link(folder / TENSORS, copy / TENSORS)
        except OSError as error:
            raise AdapterError(
                f"{folder} could not be proven: a copy of it cannot be written", why=str(error)
            ) from error
        yield copy


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
