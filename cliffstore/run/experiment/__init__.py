"""`cliffstore heads experiment`: heads traced on one half of the prompts and switched off on the other."""
