"""From a user's id to a page: the catalogue, the store, the blend, and the way through them.

A library without a web framework: the gateway serves it over HTTP, Triton's model ``recommend`` over Triton's own
protocols, and the build judges it offline. It imports numpy, msgspec, the client, and the libraries of its indexes.
"""
