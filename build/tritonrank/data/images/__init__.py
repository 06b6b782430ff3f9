"""Images of items: files, encoders, and the table of their vectors."""
