"""Simulated shoppers whose true wishes are known: what a system that learns every night is measured by."""
