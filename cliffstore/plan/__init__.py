"""Corpus to plan: the prefix tree, units, rows. Pure and deterministic."""
