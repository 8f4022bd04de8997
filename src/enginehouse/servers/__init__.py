"""One server's life: ports, start, readiness, health, stop."""
