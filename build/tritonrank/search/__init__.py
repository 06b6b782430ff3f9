"""``tritonrank search RECIPE``: which settings of a recipe rank best, found by trying them (docs/search.md).

space.py      which settings, and which values they may have
storage.py    where a study is kept: a SQLite file, a journal file, a database
study.py      what a study is of, and which of its trials count
workers.py    several processes at one study: nothing twice, nobody waits for the dead
proposals.py  what is tried next, and what is ended early
trial.py      one trial: the stages from the first setting that is searched on, judged on the validation users
search.py     all of it, in order
winner.py     the best trial as a recipe, with what it has trained
report.py     table, page and JSON
"""
