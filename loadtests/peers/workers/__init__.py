"""What runs inside the other environments: each file is a program of its own, run with ``python -m``."""
