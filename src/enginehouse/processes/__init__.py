"""Processes on this machine: started, tracked with their descendants, and ended."""
