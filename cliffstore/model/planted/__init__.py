"""A transformer whose refusal mechanism is set by hand."""
