"""How much memory a model takes, against sizes that are computed by hand."""

from __future__ import annotations

import json
import struct
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from enginehouse.provisioning.model_memory import cache_per_token, estimate_memory

# Llama 3.1 8B: 32 layers, 8 key-value heads of dimension 128, two bytes.
LLAMA = {
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}


def tensors(path: Path, *sizes: int) -> None:
    """A safetensors file with tensors of so many bytes, its data left out."""
    entries, begin = {"__metadata__": {"format": "pt"}}, 0
    for number, size in enumerate(sizes):
        entries[str(number)] = {
            "dtype": "U8",
            "shape": [size],
            "data_offsets": [begin, begin + size],
        }
        begin += size
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of two files."""
    folder = tmp_path / "llama"
    tensors(folder / "model-1.safetensors", 1000, 2000)
    tensors(folder / "model-2.safetensors", 500)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (LLAMA, 2 * 32 * 8 * 128 * 2),
        ({"text_config": LLAMA}, 131072),
        (LLAMA | {"head_dim": 64}, 65536),
        (LLAMA | {"torch_dtype": "float32"}, 262144),
        ({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, 524288),
        # DeepSeek V3: 61 layers, latent rank 512, rotary dimension 64.
        (
            {
                "num_hidden_layers": 61,
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "torch_dtype": "bfloat16",
            },
            61 * 576 * 2,
        ),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_cache_of_a_token(config: dict[str, object], size: int | None):
    """By the formula; unknown where the configuration does not say."""
    assert cache_per_token(config) == size


def test_a_folder(checkpoint: Path):
    """The tensors that the headers list, not the files' own size."""
    found = estimate_memory(str(checkpoint))
    assert found is not None
    assert (found.weights, found.cache_per_token) == (3500, 131072)


def test_the_cache_of_the_hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The snapshot that the main branch stood for; nobody is asked."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tmp_path / "hub/models--meta--llama"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    (model / "snapshots").mkdir()
    (model / "snapshots/abc").symlink_to(checkpoint)
    found = estimate_memory("meta/llama")
    assert found is not None
    assert found.weights == 3500
    assert estimate_memory("meta/other") is None


@pytest.mark.slow
def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The sizes of one form of the weights, by its metadata, with the user's token."""
    tokens: list[str | None] = []
    files = {
        "model-1.safetensors": 6,
        "model-2.safetensors": 4,
        "consolidated.safetensors": 10,
        "original/model.safetensors": 10,
        "config.json": 1,
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers["Authorization"])
            siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
            content = {
                "/api/models/meta/llama?blobs=true": {"siblings": siblings},
                "/meta/llama/resolve/main/config.json": LLAMA,
            }.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "mine")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        found = estimate_memory("meta/llama")
        missing = estimate_memory("meta/none")
        server.shutdown()
    assert found is not None
    assert (found.weights, found.cache_per_token, found.source) == (10, 131072, "the hub")
    assert missing is None
    assert set(tokens) == {"Bearer mine"}


@pytest.mark.slow
def test_a_hub_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The size is unknown after a second, although each part of the answer arrives at once."""

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not ended.wait(0.1):
                    self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    ended = Event()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        Thread(target=server.serve_forever).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        begun = time.monotonic()
        found = estimate_memory("meta/llama")
        seconds = time.monotonic() - begun
        ended.set()
        server.shutdown()
    assert found is None
    assert 1.0 <= seconds < 3.0


def test_what_cannot_be_read_is_unknown(checkpoint: Path):
    """A broken file is no reason not to show the rest."""
    (checkpoint / "model-2.safetensors").write_bytes(b"\xff" * 20)
    assert estimate_memory(str(checkpoint)) is None
    assert estimate_memory(str(checkpoint.parent)) is None
    assert estimate_memory("smollm2") is None
