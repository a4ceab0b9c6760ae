"""DeepLC's public network, tuned on 100 peptides of a chromatography that it has not seen."""
