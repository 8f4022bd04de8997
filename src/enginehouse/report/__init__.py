"""What people see of an evaluation: the report's data, and how a terminal shows it."""
