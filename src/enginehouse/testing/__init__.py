"""Fakes and conformance suites, for our tests and for those who add an engine."""
