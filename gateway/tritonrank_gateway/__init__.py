"""The HTTP service in front of Triton: it speaks the rerank dialects of the field and passes each request on as one.

    __main__    python -m tritonrank_gateway --triton HOST:PORT
    settings    what can be set, by flag or environment
    ranking     what a dialect asks for and gets, and what answers it: a Backend
    backend     the Backend that asks one Triton
    service     whole requests in, rankings out: keys, bounds, deadlines, hang-ups, metrics, log
    dialects/   one file per dialect: its request -> RankRequest, a Ranking -> its answer
    app         all of it as one ASGI application, and a second one for health and metrics

Nothing of `tritonrank` is imported: an application needs the gateway and no build tools.
"""
