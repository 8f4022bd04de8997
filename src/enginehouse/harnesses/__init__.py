"""Other projects' evaluation harnesses, each as itself, in an environment of its own."""
