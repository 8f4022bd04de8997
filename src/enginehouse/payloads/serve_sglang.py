"""Starts SGLang's server as `sglang serve` does, with its API key from the environment.

Run by the Python that has SGLang: `python serve_sglang.py --model-path PATH …`. SGLang takes its
key only as a flag, which anyone who can list processes can read, and logs all its arguments. Here
the key comes in SGLANG_SERVER_API_KEY and is replaced by stars in the log. So is
SGLANG_SERVER_ADMIN_KEY, which is required by endpoints that change the server (weights, adapters,
cache).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

API_KEY = "SGLANG_SERVER_API_KEY"
ADMIN_KEY = "SGLANG_SERVER_ADMIN_KEY"


def star_out(*words: str) -> None:
    """Replace `words` by stars in everything that this process logs from now on."""
    make = logging.getLogRecordFactory()

    def starred(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        message = record.getMessage()
        if any(word in message for word in words):
            for word in words:
                message = message.replace(word, "***")
            record.msg, record.args = message, None
        return record

    logging.setLogRecordFactory(starred)


def main() -> None:
    """Serve until told to stop."""
    key = os.environ.pop(API_KEY, None)
    admin_key = os.environ.pop(ADMIN_KEY, None)
    launch_server = importlib.import_module("sglang.launch_server")
    importlib.import_module("sglang.srt.plugins").load_plugins()
    arguments = importlib.import_module("sglang.srt.server_args").prepare_server_args(sys.argv[1:])
    if key:
        arguments.api_key = key
        star_out(key)
    if admin_key:
        arguments.admin_api_key = admin_key
        star_out(admin_key)
    try:
        launch_server.run_server(arguments)
    finally:
        kill = importlib.import_module("sglang.srt.utils").kill_process_tree
        kill(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
