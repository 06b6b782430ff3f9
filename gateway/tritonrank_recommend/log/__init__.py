"""The training log: what users did and what they were shown, as Parquet files by the hour, for ``prepare`` to read.

``layout.py`` says which files there are and which of them count; ``event_log.py`` writes them while serving;
``upkeep.py`` joins the parts of an hour and takes erased users out.
"""
