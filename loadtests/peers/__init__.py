"""Our ranker beside the ones that people would use instead: one workload, one machine, one run.

    python -m loadtests.peers --workload workload.jsonl --joint artifacts/movielens-joint --shared artifacts/movielens

Every system answers the same requests, one system at a time, each in its own environment; what one of them cannot do
is in the table as well. The files, in the order in which a run uses them:

    __main__.py      the command: everything of each system, one system at a time
    turns.py         the other: few systems in turns, for multiples; turns_report.py -> its tables
    variants.py      the served repository with another executor
    hops.py          what each model behind Triton takes of a request
    cases.py         workload file -> the requests of a run, and their texts as the peers get them
    catalogue.py     which systems there are, with the settings that matter
    environments.py  a virtual environment per peer, from requirements/*.txt
    system.py        what every system can be asked for
    libraries.py     systems without a server: a worker process over a pipe
    servers.py       systems with one: Infinity over HTTP, Triton over gRPC
    workers/         what runs inside the other environments
    load.py          closed and open loop
    measure.py       everything that is measured of one system
    machine.py       how fast this machine can multiply at the best
    report.py        results.json -> tables; workers/plot.py -> the picture

Only workers/ours.py and workers/plain_triton.py import what models need: the first because it measures our library in
process, the second to start the tritonserver that both sides use. measure.py judges with the pipeline's own metrics.
"""
