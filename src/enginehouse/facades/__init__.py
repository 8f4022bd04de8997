"""The names that other projects import, over this one's: only the import line changes."""
