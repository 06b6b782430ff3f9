"""The CPU engine of our own: a small C++ library, called through ctypes, that computes a ranker's graphs.

``weights.py`` says what file it computes from, ``library.py`` finds or compiles the library, ``model.py`` hands the
weights over, and ``graphs.py`` gives graphs that the engines of ``shared_context.py`` and ``joint.py`` run in place of
ONNX Runtime's sessions. Inside (``api.h``, ``engine.h``): rows packed without padding, blocks of them taken through all
layers so that they stay in the cache, and kernels per instruction set (``kernels.h``).
"""

from tritonrank_runtime.native.graphs import open_native_graphs
from tritonrank_runtime.native.weights import NATIVE_FILE, Linear, NativeConfig, NativeWeights

__all__ = ["NATIVE_FILE", "Linear", "NativeConfig", "NativeWeights", "open_native_graphs"]
