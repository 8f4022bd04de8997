"""Where figures are exported to. Each exporter is a file in this folder; see `base.py`."""
