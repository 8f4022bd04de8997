"""Plans made of configuration, and the wiring that carries them out."""
