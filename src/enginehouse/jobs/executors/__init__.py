"""Where jobs run. Each executor is a file in this folder; `base.py` says what one is."""
