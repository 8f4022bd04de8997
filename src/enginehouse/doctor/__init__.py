"""Checks of this machine, before anything fails."""
