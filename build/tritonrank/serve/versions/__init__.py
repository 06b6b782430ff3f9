"""Several versions of a ranker in one running tritonserver, loaded and unloaded while it answers."""
