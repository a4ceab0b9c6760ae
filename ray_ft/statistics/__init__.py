"""Statistics of scores, intervals and ensembles."""
