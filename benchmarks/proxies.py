"""What stands between a client and a server: our gateway, nginx, and LiteLLM's proxy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from fixed_server import MODEL, free_port, program
from peer_environments import peer_program

_DEADLINE = 180.0
# each has a kept connection for every client, as ours has
_NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engine {{ server {host}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
_LITELLM_VARIABLES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would ask the network for prices
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOG": "ERROR",
}


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """What it has computed so far, with its children."""
        process = psutil.Process(self.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))

    def resident(self) -> float:
        """Its resident memory in MB (10⁶ bytes)."""
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6


@contextmanager
def our_gateway(url: str, *options: str) -> Iterator[Proxy]:
    """`enginehouse gateway --url URL`."""
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        words = ["gateway", "--url", url, "--port", str(port), "--quiet", *options]
        command = [sys.executable, "-m", "enginehouse", *words]
        with _running(command, port, path="/health", env={"ENGINEHOUSE_HOME": home}) as proxy:
            yield proxy


@contextmanager
def nginx_proxy(url: str) -> Iterator[Proxy]:
    """An nginx with one worker."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        file = Path(folder, "nginx.conf")
        host = url.removeprefix("http://")
        file.write_text(_NGINX.format(folder=folder, port=port, host=host))
        command = [program("nginx"), "-p", folder, "-c", str(file), "-e", "stderr"]
        with _running(command, port, path="/v1/models", env={}) as proxy:
            yield proxy


@contextmanager
def litellm_proxy(url: str) -> Iterator[Proxy]:
    """LiteLLM's proxy with one worker, no database, no key and no log."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        parameters = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
        settings = {
            "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
            "litellm_settings": {"telemetry": False},
        }
        file = Path(folder, "settings.json")  # JSON is YAML
        file.write_text(json.dumps(settings))
        words = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        command = [*peer_program("litellm-proxy", "litellm"), *words, "--num_workers", "1"]
        with _running(command, port, path="/health/liveliness", env=_LITELLM_VARIABLES) as proxy:
            yield proxy


@contextmanager
def _running(
    command: Sequence[str], port: int, *, path: str, env: Mapping[str, str]
) -> Iterator[Proxy]:
    url = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            if not _answers(url + path, process):
                log.seek(0)
                sys.exit(f"{command[0]} did not start:\n{log.read().decode()[-4000:]}")
            yield Proxy(url, process.pid)
        finally:
            process.send_signal(signal.SIGINT if "enginehouse" in command else signal.SIGTERM)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - it is ours
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.2)
        else:
            return True
    return False
