"""Everything that is peculiar to an engine: command line, capabilities, readiness, diagnosis."""
