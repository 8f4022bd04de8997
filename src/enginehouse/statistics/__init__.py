"""Intervals, paired tests and estimates for what an evaluation measures. Pure functions."""
