"""What Triton loads: the code of the models, from a request's texts to scores.

``assemble`` copies this whole folder beside each model, so a repository needs nothing of the environment that built it.
It imports nothing of the project, and at its top nothing heavier than the standard library, numpy and tokenizers; an
engine's own library (onnxruntime, torch) is imported where that engine is opened.
"""
