"""One server's life: lease ports, spawn, see it ready, stop it and prove it."""
