"""The last model: what the ranker, retrieval and the counts say of a candidate, as one score."""
