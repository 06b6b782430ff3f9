"""Plans for one GPU or several, their profiles, and an engine that runs them."""
