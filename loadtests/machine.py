"""What the figures were measured on: processor, cores that may be used, memory, and how busy it was already."""

import os
import platform

import psutil
from pydantic import BaseModel, ConfigDict, Field
from tritonrank.system.machine import cpu_flags, processor_name
from tritonrank_runtime.cores import available_cores

FLAGS_THAT_MATTER = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


class Machine(BaseModel):
    """A description that makes figures of two runs comparable, or shows that they are not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    cores: int = Field(description="that this process may use: its affinity, and a container's quota of CPU time")
    flags: list[str] = Field(description="instruction sets that decide speed here")
    memory_gb: float
    system: str
    load_average: float = Field(description="of the last minute, before the run: other people's work")


def describe_machine() -> Machine:
    """This machine, as it is now."""
    flags = cpu_flags()
    return Machine(
        processor=processor_name(),
        cores=available_cores(),
        flags=[flag for flag in FLAGS_THAT_MATTER if flag in flags],
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        system=platform.system(),
        load_average=round(os.getloadavg()[0], 2),
    )
