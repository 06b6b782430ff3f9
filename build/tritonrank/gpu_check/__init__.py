"""A ranker packed for another machine, checked and measured there."""
