"""Results: a run read back."""
