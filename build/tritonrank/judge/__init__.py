"""Ranking metrics on held-out users, and the gate that decides whether a step may stand."""
