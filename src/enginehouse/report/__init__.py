"""Rendering of results, for terminals and as HTML."""
