"""turns.json -> Markdown: multiples of each peer, each hop, and the share of the machine's product speed."""

import statistics
from collections.abc import Mapping
from typing import Any

INT8 = "onnxruntime_int8"
"""The product speed that a share refers to: u8 x s8, as the served ranker computes."""


def multiple(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """How many times faster a single client is answered: median, least, most of the rounds that both have."""
    pairs = zip(ours["p50_ms_by_round"], peer["p50_ms_by_round"], strict=False)
    ratios = [other / own for own, other in pairs]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def saturation(system: Mapping[str, Any]) -> float | None:
    """Candidates per second with the best number of clients."""
    return max(system.get("candidates_per_second", {}).values(), default=None)


def roof_share(results: Mapping[str, Any], system: Mapping[str, Any]) -> float | None:
    """Of the product speed that this machine reached alone in INT8: useful GFLOP per second of p50; padding and what is
    no product count as nothing."""
    rate = results["gflop_per_second"].get(INT8)
    if system["kind"] != "ours" or "p50_ms" not in system or not rate:
        return None
    return float(results["gflop_per_request"]["ours"] / (system["p50_ms"] / 1000) / rate)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, and the reasons of what failed."""
    systems = results["systems"]
    peers = [system for system in systems if system["kind"] == "peer" and "failed" not in system]
    names = [f"x {peer['name']}" for peer in peers]
    lines = _table(
        ["system", "p50 ms", *names, "candidates/s", *names, "share of INT8 products", "MB"],
        [_row(results, system, peers) for system in systems],
    )
    lines += ["", _legend(results)]
    hops = [system for system in systems if "hops" in system]
    if hops:
        lines += ["", *_table(["a request, mean ms", *(system["name"] for system in hops)], _hop_rows(hops))]
    lines += [f"\n**{system['name']}** failed: {system['failed']}" for system in systems if "failed" in system]
    return "\n".join(lines) + "\n"


def _row(results: Mapping[str, Any], system: Mapping[str, Any], peers: list[Mapping[str, Any]]) -> list[str]:
    if "failed" in system:
        return [system["name"], "failed", *[""] * (2 * len(peers) + 3)]
    latency = [multiple(system, peer) for peer in peers]
    speed = saturation(system)
    throughput = [speed / other if speed and (other := saturation(peer)) else None for peer in peers]
    share = roof_share(results, system)
    return [
        system["name"],
        f"{system['p50_ms']:.1f}",
        *(f"{one[0]:.1f} [{one[1]:.1f}, {one[2]:.1f}]" if one else "" for one in latency),
        f"{speed:,.0f}" if speed else "",
        *(f"{one:.1f}" if one else "" for one in throughput),
        f"{share:.0%}" if share is not None else "",
        f"{system['memory_mb']:,.0f}",
    ]


def _hop_rows(systems: list[Mapping[str, Any]]) -> list[list[str]]:
    hops = [system["hops"] for system in systems]
    rows = []
    for model in dict.fromkeys(model for one in hops for model in one["models_ms"]):
        for part in ("queue", "compute_input", "compute_infer", "compute_output"):
            values = [one["models_ms"].get(model, {}).get(part) for one in hops]
            label = f"{model}: {part.replace('_', ' ')}"
            rows.append([label, *("" if value is None else f"{value:.2f}" for value in values)])
    for step in dict.fromkeys(step for one in hops for step in one.get("steps_ms", {})):
        values = [one.get("steps_ms", {}).get(step) for one in hops]
        rows.append([f"in the one process: {step}", *("" if value is None else f"{value:.2f}" for value in values)])
    for key, label in (
        ("between_ms", "in Triton, in no model"),
        ("client_and_network_ms", "client, network, and gateway where there is one"),
        ("client_mean_ms", "altogether"),
    ):
        rows.append([label, *(f"{one[key]:.2f}" for one in hops)])
    return rows


def _legend(results: Mapping[str, Any]) -> str:
    needed, rates = results["gflop_per_request"], results["gflop_per_second"]
    settings = results["settings"]
    gates = ", ".join(f"{gate['gate']} {'passed' if gate['passed'] else 'FAILED'}" for gate in results["gate"])
    measured = ", ".join(f"{name.replace('_', ' ')} {rate:.0f}" for name, rate in rates.items())
    return (
        f"Requests of {settings['candidates']} candidates, every context new, from one client, the systems in turns; a "
        f"multiple is the median [least, most] of {results['rounds']} rounds. Candidates per second: at saturation. A "
        f"request needs {needed['ours']:.1f} GFLOP of ours and {needed['joint']:.1f} by joint ranking of the unpruned "
        f"base. Product speed, GFLOP/s: {measured}. {results['machine']['processor']}, {results['machine']['cores']} "
        f"cores. Peers' head: {results['peers_head']}. Gates of the served ranker: {gates or 'none'}."
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
