"""The models: joint and shared-context rankers, where they come from, what they cost, and how a request is scored."""
