"""What every operation is given, and how work runs beside it."""
