"""Any server with OpenAI's endpoints, started by a command of the user's."""
