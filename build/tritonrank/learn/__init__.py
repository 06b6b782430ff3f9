"""What a serving system learns from what it showed and what became of it."""
