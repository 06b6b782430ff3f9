"""How fast this machine multiplies matrices at the best: the ceiling for everything else in the table.

    python -m loadtests.peers.workers.multiply [--brief]

The shape is that of the encoder's widest layer for 1,300 tokens (M=1300, K=384, N=1536), on all cores. FP32 by NumPy
(OpenBLAS), torch (oneDNN or MKL) and ONNX Runtime (MLAS), BF16 by torch, INT8 by ONNX Runtime with u8 x s8 and back to
u8, as a static INT8 graph runs it. Prints GFLOP/s as JSON; an INT8 multiply-add counts as two operations, too.
With --brief only NumPy is asked, for a second: a cheap look at whether the machine has become slower since.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ROWS, INNER, COLUMNS = 1300, 384, 1536
GFLOP = 2 * ROWS * INNER * COLUMNS / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    seconds = min(arguments.seconds, 1.0) if arguments.brief else arguments.seconds
    rates = {"numpy_fp32": rate(numpy_product(), seconds)}
    if not arguments.brief:
        rates["torch_fp32"] = rate(torch_product("float32"), seconds)
        rates["torch_bf16"] = rate(torch_product("bfloat16"), seconds)
        rates["onnxruntime_fp32"] = rate(onnxruntime_product(int8=False), seconds)
        rates["onnxruntime_int8"] = rate(onnxruntime_product(int8=True), seconds)
    print(json.dumps(rates))


def rate(product: Callable[[], object], seconds: float) -> float:
    """GFLOP/s of the fastest tenth of the products: interruptions by others say nothing about the ceiling."""
    product()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times) < 10:
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return GFLOP / float(np.quantile(times, 0.1))


def numpy_product() -> Callable[[], object]:
    generator = np.random.default_rng(0)
    left = generator.standard_normal((ROWS, INNER), dtype=np.float32)
    right = generator.standard_normal((INNER, COLUMNS), dtype=np.float32)
    output = np.empty((ROWS, COLUMNS), dtype=np.float32)
    return lambda: np.matmul(left, right, out=output)


def torch_product(numbers: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = getattr(torch, numbers)
    left, right = torch.randn(ROWS, INNER).to(dtype), torch.randn(INNER, COLUMNS).to(dtype)
    output = torch.empty(ROWS, COLUMNS, dtype=dtype)
    return lambda: torch.mm(left, right, out=output)


def onnxruntime_product(*, int8: bool) -> Callable[[], object]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    left: NDArray[np.generic]
    constants: dict[str, NDArray[np.generic]]
    element = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    if int8:
        left = generator.integers(0, 255, (ROWS, INNER), dtype=np.uint8)
        constants = {
            "right": generator.integers(-127, 127, (INNER, COLUMNS), dtype=np.int8),
            "scale": np.array(0.02, dtype=np.float32),
            "left_zero": np.array(128, dtype=np.uint8),
            "right_zero": np.array(0, dtype=np.int8),
        }
        names = ["left", "scale", "left_zero", "right", "scale", "right_zero", "scale", "left_zero"]
        node = helper.make_node("QLinearMatMul", names, ["product"])
    else:
        left = generator.standard_normal((ROWS, INNER), dtype=np.float32)
        constants = {"right": generator.standard_normal((INNER, COLUMNS), dtype=np.float32)}
        node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("left", element, [ROWS, INNER])],
        [helper.make_tensor_value_info("product", element, [ROWS, COLUMNS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9  # readable for every ONNX Runtime that these environments may hold
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["product"], {"left": left})


if __name__ == "__main__":
    main()
