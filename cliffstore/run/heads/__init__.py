"""Heads of a store's model: traced, switched off, where they look, and what a planted model is for."""
