"""Registered models: what is in the registry, what has to run for it, what was found, and who is told."""
