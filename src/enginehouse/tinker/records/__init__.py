"""What the service remembers of sessions, models and checkpoints, in SQLite or Postgres."""
