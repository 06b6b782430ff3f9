"""Which backend the settings make, and what its metrics are called."""

from pathlib import Path

import pytest
from tritonrank_gateway.backend import TritonBackend
from tritonrank_gateway.compose import compose
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.replicas import ReplicaPool
from tritonrank_gateway.result_cache import CachedBackend
from tritonrank_gateway.settings import GatewaySettings, read_settings
from tritonrank_gateway.split import SplitBackend

TWO = ("127.0.0.1:1", "127.0.0.1:2")


async def test_one_triton_several_and_a_cache() -> None:
    kinds = {
        (): TritonBackend,
        ("--triton", ",".join(TWO)): SplitBackend,
        ("--triton", ",".join(TWO), "--split-candidates", "0"): ReplicaPool,
        ("--split-candidates", "256"): SplitBackend,
        ("--cache-mb", "1"): CachedBackend,
        ("--cache-mb", "1", "--triton", ",".join(TWO)): CachedBackend,
    }
    for flags, kind in kinds.items():
        backend = compose(read_settings(flags, {}), Metrics())
        assert type(backend.live.opened.backend) is kind
        await backend.close()


async def test_each_replica_and_the_cache_have_metrics() -> None:
    metrics = Metrics()
    backend = compose(GatewaySettings(triton=TWO, cache_mb=1), metrics)
    lines = metrics.page().decode().splitlines()
    for name in ("replica_up", "replica_candidates"):
        found = [line for line in lines if line.startswith(f"tritonrank_gateway_{name}{{")]
        assert sorted(line.split('"')[1] for line in found) == sorted(TWO)
    for name in ("cache_hit_rate", "cache_bytes", "cache_entries"):
        assert f'tritonrank_gateway_{name}{{version="live"}} 0.0' in lines
    await backend.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"triton": ("127.0.0.1:1", "127.0.0.1:1")}, "twice"),
        ({"triton": TWO, "golden": Path(__file__)}, "repository"),
        ({"probe_s": 0.0}, "--probe-s"),
        ({"cache_mb": -1}, "--cache-mb"),
        ({"golden": Path("nowhere.json")}, "--golden"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_settings_that_are_wrong(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose(GatewaySettings(**settings), Metrics())  # type: ignore[arg-type]
