"""Agents, deliberation, matches and experiments, on samplers that it is handed."""
