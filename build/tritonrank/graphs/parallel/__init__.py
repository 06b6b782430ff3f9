"""One graph cut into ranks that compute each layer together."""
