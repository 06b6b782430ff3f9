"""Fleets of 10 to 1,000 replicas, a day in seconds: what a spike or a loss costs under each way of steering.

`python -m loadtests simulate` plays scenarios (``scenarios.py``) on a fleet (``fleet.py``) whose replicas cost what was
measured (``cost.py``), under policies (``policies.py``), and writes a table and a page.
"""
