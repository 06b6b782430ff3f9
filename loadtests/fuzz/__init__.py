"""Seeded fuzz of a local server: what it is asked (the modules of requests), where it is asked, and what came of it.

values          tensors that are right, and values that are not
mutations       changes to a request in JSON
http_requests   JSON, the binary extension, generate endpoints, bytes that are no request, hang-ups
grpc_requests   structured and damaged protobuf, calls that are given up
clients         the product's own client on its four transports
served          the server, its ends and its repairs
record          counts, leaks, the verdict
verb            the command
"""
