"""Interventions as a user writes them, to steps that a worker can take."""
