"""The cases of the engines' conformance suite; `testing/check_engine.py` runs them.

A case belongs beside those that it is like. Cases run in the order of `check_engine`'s imports.
"""
