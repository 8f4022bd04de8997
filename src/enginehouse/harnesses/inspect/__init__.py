"""The UK AI Security Institute's Inspect (inspect_ai), with its collection inspect_evals."""
