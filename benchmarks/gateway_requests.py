"""The gateway against nginx and LiteLLM's proxy: python benchmarks/gateway_requests.py.

All stand before the same nginx, which answers at once, and are asked by wrk; two cores are shared
by all three programs of a measurement. Requests per second, round by round; the ratios go to
standard output as rows for docs/performance.md. A busy machine takes its part from every program
alike, so the CPU time per request is said, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

from fixed_server import fixed_server, wrk
from interleaved import HEAD, interleaved, machine, mean, paired_ratio, row, say
from proxies import Proxy, litellm_proxy, nginx_proxy, our_gateway

_LITELLM = "LiteLLM's proxy 1.108.7"


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--litellm-seconds", type=int, default=30)
    parser.add_argument("--without-litellm", action="store_true")
    asked = parser.parse_args(arguments)
    say(machine())
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(fixed_server())
        proxies = {
            "gateway": stack.enter_context(our_gateway(url, "--concurrency", "256")),
            "nginx": stack.enter_context(nginx_proxy(url)),
        }
        if not asked.without_litellm:
            proxies[_LITELLM] = stack.enter_context(litellm_proxy(url))

        def rate(name: str, proxy: Proxy) -> float:
            before = proxy.cpu_seconds()
            seconds = asked.litellm_seconds if name == _LITELLM else asked.seconds
            found = wrk(proxy.url, concurrency=asked.concurrency, seconds=seconds)
            spent = (proxy.cpu_seconds() - before) / max(1.0, found * seconds)
            cpu.setdefault(name, []).append(spent)
            return found

        measures: dict[str, Callable[[], float]] = {
            name: partial(rate, name, proxy) for name, proxy in proxies.items()
        }
        for name in proxies:  # LiteLLM imports much at its first requests
            say(f"before the first round: {name} {measures[name]():,.4g}")
        cpu.clear()
        found = interleaved(measures, rounds=asked.rounds)
    for name, seconds in cpu.items():
        say(f"{name}: {median(seconds) * 1e6:,.0f} µs of CPU per request (median)")
    print(HEAD)
    print(row("gateway, requests/s", mean(found["gateway"]), at_least=3000))
    print(row("gateway / nginx, requests/s", paired_ratio(found["gateway"], found["nginx"])))
    if not asked.without_litellm:
        ratio = paired_ratio(found["gateway"], found[_LITELLM])
        print(row(f"gateway / {_LITELLM}, requests/s", ratio, at_least=10))
        ratio = paired_ratio(cpu[_LITELLM], cpu["gateway"])
        print(row(f"{_LITELLM} / gateway, CPU per request", ratio))


if __name__ == "__main__":
    main(sys.argv[1:])
