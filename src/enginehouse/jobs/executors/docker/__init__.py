"""Docker: jobs in containers on this machine."""
