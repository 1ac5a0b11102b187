"""Random faults against all that runs in production, by a seed; and the judge of what came of each turn."""
