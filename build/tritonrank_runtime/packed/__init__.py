"""The engine for a GPU: tokens of several requests in one sequence without padding, one attention kernel, few launches.

``packing.py`` turns requests into one flat buffer of numbers (numpy alone), ``network.py`` computes logits from it,
``kernels.py`` holds the kernels in OpenAI Triton.
"""
