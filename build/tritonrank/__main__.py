"""``python -m tritonrank``, which is also what torchrun starts."""

from tritonrank.cli import main

main()
