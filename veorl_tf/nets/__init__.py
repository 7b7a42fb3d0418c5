"""Keras layers and the small pure functions around them. Nothing here reads a configuration."""
