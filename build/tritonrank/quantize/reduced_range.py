"""Whether INT8 weights for CPUs use 7 of their 8 bits."""

from tritonrank.system.machine import has_int8_dot_product


def has_reduced_range() -> bool:
    """Whether weights get 7 bits: u8 x s8 pairs saturate 16-bit sums on CPUs without VNNI."""
    return not has_int8_dot_product()
