"""What ``compile`` would say of a plan from an A100, for bytes that are none: identities and refusals need no GPU."""

from pathlib import Path
from typing import Any

from tritonrank.artifacts import sha256_file
from tritonrank.tensorrt.plans import PLAN_FILE, Gpu, PlanIdentity, write_identity

A100 = Gpu("NVIDIA A100-SXM4-80GB", "8.0", "580.1")
VERSION = "11.4.0.106"


def identify(folder: Path, **changes: Any) -> None:
    """Write the identity of the plan in a folder."""
    known: dict[str, Any] = {
        "module": "tensorrt",
        "version": VERSION,
        "compute_capabilities": ["8.0"],
        "gpu": A100.name,
        "driver": A100.driver,
        "precision": "fp16",
        "version_compatible": False,
        "hardware_compatibility": "none",
        "profiles": [],
        "graph": "0",
        "sha256": sha256_file(folder / PLAN_FILE),
    }
    write_identity(folder, PlanIdentity(**known | changes))
