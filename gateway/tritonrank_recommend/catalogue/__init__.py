"""The items as retrieval sees them: read from what the stage ``catalogue`` wrote, changed while serving."""
