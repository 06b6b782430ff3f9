"""``prepare`` where the events are more than one machine can hold: read, cleaned and split on a Spark cluster.

Spark moves rows; what happens to them is the code that one machine runs, on the rows of some files or of some users.
So the same recipe gives the same dataset, to the byte, whichever way it is made.
"""
