"""Stages wired together, in this process or on a Ray cluster."""
