"""What a recommender refuses, told to whoever asked."""


class RequestError(ValueError):
    """A request that nobody could answer; the message names the field."""


class NoCatalogueError(Exception):
    """A question to the catalogue alone, and it cannot be opened; the message says why."""
