"""What a build achieved: one table at its end, and one page about all of it."""
