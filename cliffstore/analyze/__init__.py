"""Analysis of stored activations: probes, scores, cliffs."""
