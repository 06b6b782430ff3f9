"""How many pods of which size a load wants, by what was measured: the cost of a request, and the memory it ran in.

The CPU seconds of a ranking are a straight line over its candidates (``loadtests/simulate/cost.json``, or measured on
your build: `python -m loadtests simulate ARTIFACTS`); a Triton is to be busy for 0.6 of its time, as the gateway's wish
for replicas has it too. Memory is what was seen, twice, because what was not measured here is not known there.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tritonrank_gateway.adapt.controller import WISH_ROOM
from tritonrank_gateway.endpoint import MOST_HELD_BYTES

from loadtests.simulate.cost import DEFAULT, read_cost

MEASURED = Path(__file__).with_name("measured.json")
CORES = 2
"""Of the Triton whose cost was measured, and of each one here."""
SHARED_MEMORY_MB = 512
MEMORY_ROOM = 2.0
WEIGHTS_TIMES = 3.0
"""Memory of a version over the size of its weights: ONNX Runtime keeps packed copies and arenas beside them."""
STEP_MB = 256
FEWEST = 2
"""Of each kind: one is away whenever its node is."""


@dataclass(frozen=True)
class Size:
    """What a load wants.

    Attributes:
        tritons: replicas, one more than the load needs, so that one may be away.
        gateways: replicas.
        triton_mb: memory of one Triton, with its shared memory.
        gateway_mb: memory of one gateway.
    """

    tritons: int
    gateways: int
    triton_mb: int
    gateway_mb: int

    def values(self) -> dict[str, Any]:
        """As values of the chart."""
        cpu = str(CORES)
        triton, gateway = f"{self.triton_mb}Mi", f"{self.gateway_mb}Mi"
        return {
            "triton": {
                "replicas": self.tritons,
                "sharedMemory": f"{SHARED_MEMORY_MB}Mi",
                "resources": {"requests": {"cpu": cpu, "memory": triton}, "limits": {"cpu": cpu, "memory": triton}},
            },
            "gateway": {
                "replicas": self.gateways,
                "resources": {"requests": {"cpu": "1", "memory": gateway}, "limits": {"memory": gateway}},
            },
        }


def size(
    requests_per_second: float,
    candidates: int = 200,
    *,
    weights_mb: float = 60.0,
    versions: int = 2,
    cost_file: Path = DEFAULT,
) -> Size:
    """What a load wants.

    Args:
        requests_per_second: at the busiest, of all gateways together.
        candidates: of each.
        weights_mb: the ranker's file of weights.
        versions: that stand side by side in one Triton, during a rollout two.
        cost_file: CPU seconds by candidates.

    Raises:
        CostError: the file is no cost.
    """
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    busy = requests_per_second * read_cost(cost_file).seconds(candidates)
    program_mb = measured["triton_mb"] - measured["triton_weights_mb"]
    triton_mb = MEMORY_ROOM * (program_mb + versions * WEIGHTS_TIMES * weights_mb) + SHARED_MEMORY_MB
    gateway_mb = MEMORY_ROOM * measured["gateway_mb"] + MOST_HELD_BYTES / 2**20
    return Size(
        tritons=max(FEWEST, math.ceil(busy / WISH_ROOM) + 1),
        gateways=max(FEWEST, math.ceil(requests_per_second * measured["gateway_page_seconds"] / WISH_ROOM) + 1),
        triton_mb=_up(triton_mb),
        gateway_mb=_up(gateway_mb),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `python -m deploy.helm size`."""
    parser.add_argument("--requests-per-second", type=float, required=True, help="at the busiest, of all together")
    parser.add_argument("--candidates", type=int, default=200, help="of a request [%(default)s]")
    parser.add_argument("--weights-mb", type=float, default=60.0, help="the ranker's weights [%(default)s]")
    parser.add_argument("--versions", type=int, default=2, help="side by side in one Triton [%(default)s]")
    parser.add_argument("--cost", type=Path, default=DEFAULT, help="of your build: python -m loadtests simulate")


def values_for(given: argparse.Namespace) -> str:
    """YAML for `helm install --values`."""
    found = size(
        given.requests_per_second,
        given.candidates,
        weights_mb=given.weights_mb,
        versions=given.versions,
        cost_file=given.cost,
    )
    return str(yaml.safe_dump(found.values(), sort_keys=False))


def _up(megabytes: float) -> int:
    return math.ceil(megabytes / STEP_MB) * STEP_MB
