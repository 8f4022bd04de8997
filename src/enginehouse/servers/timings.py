"""How long a server is waited for."""

from __future__ import annotations

import msgspec


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds. The defaults suit real engines; tests give shorter ones.

    `start_grace` and `stop_grace` lie between SIGTERM and SIGKILL: a vLLM that is still starting
    ignores SIGTERM, so waiting for it is pointless. `orphan_grace` is what processes get that have
    outlived the server's first one. `port` and `gpu_memory` are waits after the last process is
    gone: a driver takes some time to free 80 GB. `probe` and `canary` limit a request to /health or
    /metrics, and a one-token request. A server without a sign of work for `degraded_after` is
    degraded; one that refuses connections for `deaf_after` has failed: a vLLM that was told to stop
    closes its port, and then waits for its clients forever. A supervisor looks at the process every
    `glance`, and at every sign of work every `look`.
    """

    start_grace: float = 3.0
    stop_grace: float = 15.0
    orphan_grace: float = 2.0
    port: float = 5.0
    gpu_memory: float = 30.0
    gpu_memory_poll: float = 0.2
    probe: float = 5.0
    canary: float = 10.0
    degraded_after: float = 30.0
    deaf_after: float = 15.0
    glance: float = 0.25
    look: float = 5.0


TIMINGS = Timings()
