"""Ranking a whole table offline: `tritonrank rank ARTIFACTS FILE` (``ranking.py`` has the order of events)."""
