"""Extraction of one unit: forward passes, capture, write, receipt."""
