"""What clicks say of an order: of the one that was served, and of others."""
