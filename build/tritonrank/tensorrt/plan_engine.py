"""Run a TensorRT plan in this process, with PyTorch's memory and streams: what gpu-check times beside the others.

Triton serves plans by a backend of its own; this is for looking at a plan without a server. One execution context per
optimization profile, so that requests of different sizes do not switch profiles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tritonrank_runtime.architectures import architecture_of_inputs
from tritonrank_runtime.engine import Logits, Tensors

from tritonrank.errors import ArtifactError
from tritonrank.tensorrt.profiles import Profile

OUTPUT = "logits"


class PlanEngine:
    """A plan of either architecture.

    Args:
        plan: the file.
        profiles: those that it was built with, in their order.
        trt: the module tensorrt.

    Raises:
        ArtifactError: TensorRT cannot load the plan.
    """

    def __init__(self, plan: Path, profiles: Sequence[Profile], trt: Any) -> None:
        self._profiles = profiles
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ArtifactError(f"{plan}: TensorRT {trt.__version__} cannot load it")
        self._stream = torch.cuda.Stream()
        self._contexts = [self._context(number) for number in range(len(profiles))]

    def run(self, request: Tensors) -> Logits:
        """Logits of one request.

        Raises:
            ArtifactError: no profile holds it, or TensorRT refuses to run.
        """
        names = list(self._profiles[0])
        feed = architecture_of_inputs(names).batch_of_one({name: request[name] for name in names})
        context = self._contexts[fitting_profile(self._profiles, {name: one.shape for name, one in feed.items()})]
        with torch.cuda.stream(self._stream):
            inputs = {name: torch.from_numpy(tensor).cuda() for name, tensor in feed.items()}
            for name, tensor in inputs.items():
                context.set_input_shape(name, tuple(tensor.shape))
                context.set_tensor_address(name, tensor.data_ptr())
            output = torch.empty(tuple(context.get_tensor_shape(OUTPUT)), dtype=torch.float32, device="cuda")
            context.set_tensor_address(OUTPUT, output.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise ArtifactError("TensorRT could not run the plan; its log is on stderr")
            logits: NDArray[np.float32] = output.cpu().numpy()  # waits for the stream
        return logits.reshape(-1)

    def _context(self, number: int) -> Any:
        context = self._engine.create_execution_context()
        context.set_optimization_profile_async(number, self._stream.cuda_stream)
        self._stream.synchronize()
        return context


def fitting_profile(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of the first profile that takes these shapes.

    Raises:
        ArtifactError: none does.
    """
    for number, profile in enumerate(profiles):
        fits = (
            low <= found <= high
            for name, shape in shapes.items()
            for low, found, high in zip(profile[name].smallest, shape, profile[name].largest, strict=True)
        )
        if all(fits):
            return number
    raise ArtifactError(f"no optimization profile of the plan holds {dict(shapes)}; see tensorrt.candidate_buckets")
