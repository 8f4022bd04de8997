"""Hydra's configuration files; pkg://enginehouse.facades.agent_arena.configs finds them."""
