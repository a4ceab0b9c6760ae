"""Split: a network in two parts at its frozen boundary."""
