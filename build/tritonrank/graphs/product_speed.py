"""How fast this machine multiplies matrices: the roof of whatever computes a ranker here.

Measured where it is needed, on shapes of an encoder's layers, by the libraries that do it best: ONNX Runtime for FP32
and INT8 (u8 x s8), PyTorch for BF16.
"""

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from tritonrank_runtime.cores import available_cores

ROWS, INPUTS, OUTPUTS = 1_024, 384, 1_536
REPETITIONS = 12


def product_gflops(precision: str) -> float:
    """Billions of operations in a second on all cores, the fastest of some products; a multiply-add is two.

    Args:
        precision: FP32, BF16, INT8, or weights alone in few bits, whose products are INT8 too.
    """
    run = _bfloat16_product() if precision == "BF16" else _graph_product(is_int8=precision.startswith("INT"))
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return 2e-9 * ROWS * INPUTS * OUTPUTS / min(seconds)


def _graph_product(is_int8: bool) -> Callable[[], object]:
    generator = np.random.default_rng(1)
    if is_int8:
        rows = generator.integers(0, 255, (ROWS, INPUTS)).astype(np.uint8)
        weight = generator.integers(-127, 128, (INPUTS, OUTPUTS)).astype(np.int8)
        operator, kind, result = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
    else:
        rows = generator.normal(size=(ROWS, INPUTS)).astype(np.float32)
        weight = generator.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
        operator, kind, result = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["rows", "weight"], ["product"])],
        "product",
        [helper.make_tensor_value_info("rows", kind, [ROWS, INPUTS])],
        [helper.make_tensor_value_info("product", result, [ROWS, OUTPUTS])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"rows": rows})


def _bfloat16_product() -> Callable[[], object]:
    import torch

    rows, weight = (torch.randn(shape).bfloat16() for shape in ((ROWS, INPUTS), (INPUTS, OUTPUTS)))
    return lambda: rows @ weight
