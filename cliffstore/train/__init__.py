"""Stored vectors as batches to train on: what is read, in which order, by which process, and where a pass is."""
