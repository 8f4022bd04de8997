"""Plain data that rooms hand to `report` and that `--json` prints."""
