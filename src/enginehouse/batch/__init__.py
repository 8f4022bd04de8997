"""Files of prompts and files of samples."""
