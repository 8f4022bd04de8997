"""An OpenAI-compatible endpoint of our own in front of a deployment."""
