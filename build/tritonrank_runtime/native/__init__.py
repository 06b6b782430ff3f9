"""The CPU engine of our own: a small C++ library, called through ctypes, that computes a ranker's graphs.

``weights.py`` says what file it computes from, ``library.py`` finds or compiles the library, and ``graphs.py`` opens
both as graphs that the engines of ``shared_context.py`` and ``joint.py`` run, in place of ONNX Runtime's sessions.
"""

from tritonrank_runtime.native.weights import NATIVE_FILE, Linear, NativeConfig, NativeWeights

__all__ = ["NATIVE_FILE", "Linear", "NativeConfig", "NativeWeights"]
