"""The HTTP routes. Thin: they check who asks for what, and hand over to the rooms that know."""
