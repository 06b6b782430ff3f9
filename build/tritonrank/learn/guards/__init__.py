"""Guards: is a day of the log what it seems? What is not is left out, and a day that cannot be trusted is refused.

``inspection.inspect`` looks through a day with the baseline of accepted nights.
"""
