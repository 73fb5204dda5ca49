"""The page and the plots of what a store holds."""
