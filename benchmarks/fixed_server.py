"""A server that answers every question alike and costs next to nothing: nginx with one worker.

`apt-get install nginx wrk`: both are looked for on PATH and in the usual places.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "fixed"
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin"
_DEADLINE = 10.0
_COMPLETION = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The answer is 2."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18},
}
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
_QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "1 + 1 = ?"}]}
# idle peers must not lose their connections, and none is closed after a number of requests
_CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /v1/chat/completions {{ return 200 '{completion}'; }}
    location = /v1/models {{ return 200 '{models}'; }}
    location / {{ return 404; }}
  }}
}}
"""
_SCRIPT = """\
wrk.method = "POST"
wrk.body = '{body}'
wrk.headers["Content-Type"] = "application/json"
"""


@contextmanager
def fixed_server() -> Iterator[str]:
    """The base URL of a private nginx, stopped when the block ends. Ends us if there is none."""
    nginx = program("nginx")
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder,
                port=port,
                completion=json.dumps(_COMPLETION),
                models=json.dumps(_MODELS),
            )
        )
        command = [nginx, "-p", folder, "-c", str(configuration), "-e", "stderr"]
        with subprocess.Popen(command) as process:
            try:
                _wait(port, process)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def wrk(url: str, *, concurrency: int, seconds: int) -> float:
    """Requests per second of wrk with one thread: what the server can do."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(body=json.dumps(_QUESTION)))
        script.flush()
        options = ["-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", "60s"]
        command = [program("wrk"), *options, "-s", script.name, f"{url}/v1/chat/completions"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"wrk met errors:\n{said}")
    line = next(line for line in said.splitlines() if line.startswith("Requests/sec"))
    return float(line.split()[1])


def program(name: str) -> str:
    """The path of a program. Ends us if there is none."""
    found = shutil.which(name) or shutil.which(name, path=_PLACES)
    if found is None:
        sys.exit(f"this benchmark needs {name}: `apt-get install nginx wrk` (or your system's way)")
    return found


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit(f"nginx does not listen on port {port}")
