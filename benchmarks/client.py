"""Our client against a bare loop, the openai SDK and LiteLLM: python benchmarks/client.py.

All ask an nginx that answers at once, so that what is measured is the client. Requests per second
of each, round by round; the ratios go to standard output as rows for docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from fixed_server import fixed_server, wrk
from interleaved import FOLDER, HEAD, interleaved, machine, output, paired_ratio, row, say
from peer_environments import peer_command

# what it is called, its environment, its program
_PEERS = (
    ("openai SDK 2.54", "openai-2", "openai_client.py"),
    ("openai SDK 3.52", "openai-3", "openai_client.py"),
    ("LiteLLM 1.106", "litellm", "litellm_client.py"),
)


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--requests", type=int, default=20_000, help="ours and the bare loop")
    parser.add_argument("--peer-requests", type=int, default=1_000, help="of each slower peer")
    asked = parser.parse_args(arguments)
    say(machine())
    programs = {
        name: ([sys.executable, str(FOLDER / program)], asked.requests)
        for name, program in (("bare loop", "bare_client.py"), ("ours", "our_client.py"))
    }
    for name, environment, program in _PEERS:
        programs[name] = (peer_command(environment, program), asked.peer_requests)
    cpu: dict[str, list[float]] = {name: [] for name in programs}

    def rate(name: str, url: str) -> float:
        command, requests = programs[name]
        found, seconds = output([*command, url, requests, asked.concurrency], env=_ENVIRONMENT)
        cpu[name].append(seconds)
        return found

    with fixed_server() as url:
        measures: dict[str, Callable[[], float]] = {
            "wrk": partial(wrk, url, concurrency=asked.concurrency, seconds=2),
            **{name: partial(rate, name, url) for name in programs},
        }
        found = interleaved(measures, rounds=asked.rounds)
    for name, seconds in cpu.items():
        say(f"{name}: {median(seconds) * 1e6:,.0f} µs of CPU per request (median)")
    print(HEAD)
    print(row("bare loop / wrk", paired_ratio(found["bare loop"], found["wrk"]), at_least=0.04))
    bounds = {"bare loop": 0.7} | {name: 15.0 for name, _, _ in _PEERS}
    for name, bound in bounds.items():
        ratio = paired_ratio(found["ours"], found[name])
        print(row(f"our client / {name}, requests/s", ratio, at_least=bound))


_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would ask the network for prices

if __name__ == "__main__":
    main(sys.argv[1:])
