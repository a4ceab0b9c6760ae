"""A colour router is simulated here: random patterns, a fast optical model, a pretraining set."""
