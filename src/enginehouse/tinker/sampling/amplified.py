"""A copy of an adapter whose effect is many times as large: its tensors, with another alpha."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.weights.peft_folder import CONFIG, TENSORS


@contextmanager
def amplified(folder: Path, *, times: float) -> Iterator[Path]:
    """The copy's folder, beside `folder`, for the length of the block. Blocking, but short."""
    with tempfile.TemporaryDirectory(prefix=".amplified-", dir=folder.parent) as copy:
        config = json.loads((folder / CONFIG).read_bytes())
        config["lora_alpha"] *= times
        (Path(copy) / CONFIG).write_text(json.dumps(config))
        try:
            (Path(copy) / TENSORS).hardlink_to(folder / TENSORS)
        except OSError:  # a file system without links
            shutil.copyfile(folder / TENSORS, Path(copy) / TENSORS)
        yield Path(copy)
