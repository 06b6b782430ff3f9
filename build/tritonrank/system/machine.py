"""What this machine's processor can do, as far as it decides a setting."""

import platform
from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """Feature flags of the first processor in /proc/cpuinfo; empty where there is no such file."""
    return frozenset(_cpu_info("flags").split())


def processor_name() -> str:
    """What the processor calls itself, or its architecture where it does not say."""
    return _cpu_info("model name") or platform.machine()


def has_int8_dot_product() -> bool:
    """VNNI or AMX: u8 x s8 products are summed in 32 bits; without them in 16, where they saturate."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu_flags())


def has_bf16_products() -> bool:
    """The processor multiplies bf16 natively, which makes mixed precision faster and not just smaller."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
