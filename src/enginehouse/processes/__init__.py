"""Processes on this machine: starting them, their descendants, and seeing them gone."""
