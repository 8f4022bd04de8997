from __future__ import annotations

import pytest

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.checkpoint_paths import CheckpointPath


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("tinker://ses-1:train:0/weights/0001", ("ses-1:train:0", "training", "0001")),
        ("tinker://m/sampler_weights/a.B_c-9", ("m", "sampler", "a.B_c-9")),
        ("tinker://m/external_weights/" + "x" * 128, ("m", "external", "x" * 128)),
    ],
)
def test_reading_and_writing(path: str, parts: tuple[str, str, str]):
    """Both directions."""
    read = CheckpointPath.parse(path)
    assert (read.model_id, read.kind, read.name) == parts
    assert str(read) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "ses-1:train:0/weights/0001",
        "http://m/weights/0001",
        "tinker://m/weights",
        "tinker://m/weights/",
        "tinker://m/weights/a/b",
        "tinker://m/optimizer/a",
        "tinker:///weights/a",
        "tinker://m/weights/..",
        "tinker://m/weights/.",
        "tinker://m/weights/a..b",
        "tinker://../weights/a",
        "tinker://.incomplete/weights/a",
        "tinker://a..b/weights/a",
        "tinker://m/weights/..%2f..%2fetc",
        "tinker://m/weights/a\\b",
        "tinker://m/weights/a b",
        "tinker://m/weights/a\n",
        "tinker://m/weights/a\0",
        "tinker://m/weights/ä",
        "tinker://m/weights/a~1",
        "tinker://m/weights/" + "x" * 129,
        "tinker://" + "m" * 201 + "/weights/a",
    ],
)
def test_refused(path: str):
    """Whatever could mean another place on disk, or is not a path at all."""
    with pytest.raises(TinkerError) as refused:
        CheckpointPath.parse(path)
    assert (refused.value.status, refused.value.category) == (400, "user")
