"""The stages in order, and who runs them: the only place that knows all rooms."""
