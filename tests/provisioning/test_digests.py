from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from enginehouse.provisioning import digests
from enginehouse.provisioning.digests import chat_template_digest, file_digest, weights_digest
from enginehouse.store.layout import Layout


def test_a_file_is_hashed_once(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch):
    """The second time its size, time and inode are enough."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    assert file_digest(path, layout=layout) == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    assert file_digest(path, layout=layout) == hashlib.sha256(b"weights").hexdigest()


def test_a_changed_file_is_hashed_again(tmp_path: Path, layout: Layout):
    """New content under the same name and of the same size and time is noticed by its inode."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    status = path.stat()
    before = file_digest(path, layout=layout)
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert file_digest(path, layout=layout) != before


def test_a_torn_record_only_costs_time(tmp_path: Path, layout: Layout):
    """What was remembered may be damaged; the file is hashed again."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    digest = file_digest(path, layout=layout)
    for record in layout.digests.iterdir():
        record.write_text("{")
    assert file_digest(path, layout=layout) == digest


def test_a_blob_of_the_hub_is_not_read(tmp_path: Path, layout: Layout):
    """The hub's cache names its large files by their SHA-256."""
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.touch()
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_digest(link, layout=layout) == "a" * 64


def test_the_weights_digest_is_sha256sums(tmp_path: Path, layout: Layout):
    """Anybody can check it with two shell commands; the folder's place does not matter."""
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1")):
        (tmp_path / name).write_bytes(content)
    shell = "LC_ALL=C sha256sum *.safetensors | sha256sum"
    result = subprocess.run(
        ["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    files = [tmp_path / "b.safetensors", tmp_path / "a.safetensors"]
    assert weights_digest(files, layout=layout) == result.stdout.split()[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ x }}"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ x }}"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "other"},
                        {"name": "default", "template": "{{ x }}"},
                    ]
                }
            ),
        ),
        ("chat_template.json", json.dumps({"chat_template": "{{ x }}"})),
    ],
)
def test_a_template_is_found_wherever_it_is(tmp_path: Path, name: str, content: str):
    """The same template has the same digest in each of the four places."""
    (tmp_path / name).write_text(content)
    assert chat_template_digest(tmp_path).digest == hashlib.sha256(b"{{ x }}").hexdigest()


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_no_template_has_a_reason(tmp_path: Path, content: str | None):
    """A base model has no chat template: None, and the reason."""
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    found = chat_template_digest(tmp_path)
    assert found.digest is None
    assert found.reason
