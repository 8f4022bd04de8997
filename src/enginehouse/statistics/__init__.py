"""Intervals for what an evaluation measures. Pure functions."""
