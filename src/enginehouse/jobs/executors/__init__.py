"""Where jobs run. Each executor is a file or a folder here; `base.py` says what one is."""
