"""`cliffstore generate`: thinking and responses for a corpus."""
