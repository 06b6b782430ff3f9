"""Events on their way: a stream that keeps them in order until every reader has them, and can be read again.

``interface.py`` says what a stream is; there are three: in Redis or Valkey, in a SQLite file, in Kafka. ``intake.py``
takes the events of ``POST /v1/events``, ``consumer.py`` those that other systems put there, ``replay.py`` reads again.
"""
