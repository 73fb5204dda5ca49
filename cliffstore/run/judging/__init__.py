"""`cliffstore judge`: which responses refuse."""
