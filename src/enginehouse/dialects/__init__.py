"""Core ⇄ wire, as pure functions: no sockets, no clocks. One wire format is one file."""
