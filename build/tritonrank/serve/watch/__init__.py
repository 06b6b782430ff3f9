"""``tritonrank watch``: what a machine's servers do now, on one page of the terminal, without a Prometheus."""
