"""From cliffs to a training set: selections and exports."""
