"""What is kept on disk: where things lie, run folders, journals."""
