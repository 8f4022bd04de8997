"""What each command does, from its configuration to its result; the Python API calls the same."""
