"""tritonrank: from a fine-tuned Transformer ranker to a real-time Triton deployment."""

__version__ = "0.1.0"
