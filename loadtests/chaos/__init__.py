"""Chaos: each part of the whole service is killed, stopped, slowed and corrupted under load, and all is counted."""
