"""Load for a running server, and what it does under it. Nothing here imports the pipeline that built the server."""
