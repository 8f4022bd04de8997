"""One YAML onto another machine: composition, plans, executors, records, exporters."""
