"""The model repository, and the server that loads it."""
