"""Hydra's configuration files; pkg://enginehouse.launch.configs finds them."""
