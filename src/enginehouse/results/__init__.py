"""Plain data: the results that `report` and `web` show and `--json` prints."""
