"""What tensor parallelism costs and saves, by formula: the tables of docs/tensor-parallel.md.

Each layer adds up two tensors of (tokens, hidden size) over the ranks, one behind attention and one behind the FFN.
In a ring each rank sends 2 (N - 1) / N times a tensor's bytes (Patarasuk and Yuan 2009), and each sum has a latency
that does not shrink with the tensor. Against that stands the share of the layers' products that a rank does not
compute.
Products of attention scores are left out: they are shared out as well, and small at the lengths of rankers.

GPU figures are the makers' peaks with stated shares of them, not measurements.
"""

from dataclasses import dataclass

HALF_BYTES = 2


@dataclass(frozen=True)
class Encoder:
    """What of an encoder decides."""

    name: str
    layers: int
    hidden: int
    inner: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers: query, key, value, attention output, FFN in and out."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.inner)


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind and what connects them."""

    name: str
    flops_per_second: float
    """that FP16 products of a ranker's size reach"""
    bytes_per_second: float
    """that a rank sends during a large sum"""
    sum_seconds: float
    """that the smallest sum takes"""


MINILM = Encoder("MiniLM-L6", 6, 384, 1_536)
BERT_BASE = Encoder("BERT-base", 12, 768, 3_072)
XLM_R_LARGE = Encoder("XLM-R-large", 24, 1_024, 4_096)
ENCODERS = (MINILM, BERT_BASE, XLM_R_LARGE)
L4 = Machine("L4, PCIe 4", 60e12, 20e9, 25e-6)
"""Half of 121 TFLOP/s, two thirds of a x16 link."""
H100 = Machine("H100, NVLink 4", 495e12, 350e9, 10e-6)
"""Half of 990 TFLOP/s, three quarters of 450 GB/s."""
MACHINES = (L4, H100)


@dataclass(frozen=True)
class Load:
    """One request in a shared-context ranker (one graph): tokens in each layer, and candidates."""

    tokens: int
    candidates: int

    @classmethod
    def of(cls, context: int, candidates: int, candidate_tokens: int) -> "Load":
        return cls(context + candidates * candidate_tokens, candidates)

    def rows(self, layers: int) -> int:
        """Rows that the sums behind attention have in all layers together: in the last only one per candidate."""
        return (layers - 1) * self.tokens + self.candidates


def sums(encoder: Encoder) -> int:
    """All-reduces of one run, however many requests it holds."""
    return 2 * encoder.layers


def summed_bytes(encoder: Encoder, load: Load, value_bytes: int = HALF_BYTES) -> int:
    """Bytes of all tensors that are added up for one request."""
    return 2 * load.rows(encoder.layers) * encoder.hidden * value_bytes


def sum_seconds(encoder: Encoder, load: Load, machine: Machine, ranks: int) -> float:
    """What the sums of one request take."""
    sent = 2 * (ranks - 1) / ranks * summed_bytes(encoder, load)
    return sums(encoder) * machine.sum_seconds + sent / machine.bytes_per_second


def product_seconds(encoder: Encoder, load: Load, machine: Machine, ranks: int = 1) -> float:
    """What the layers' products of one request take on each rank; keys and values of the last layer need all tokens."""
    flops = 2 * encoder.layer_weights / encoder.layers * load.rows(encoder.layers)
    last_keys_and_values = 2 * 2 * encoder.hidden**2 * (load.tokens - load.candidates)
    return (flops + last_keys_and_values) / machine.flops_per_second / ranks


def speedup(encoder: Encoder, load: Load, machine: Machine, ranks: int) -> float:
    """Time of a request on one GPU over its time on so many; below 1 it gets slower. Replicas serve N times as many."""
    together = product_seconds(encoder, load, machine, ranks) + sum_seconds(encoder, load, machine, ranks)
    return product_seconds(encoder, load, machine) / together


def smallest_hidden(machine: Machine, value_bytes: int = HALF_BYTES) -> float:
    """The hidden size from which sums cost less than they save, however many tokens and ranks (FFN of four times it).

    Per layer and token the products saved take 24 hidden² (1 - 1/N) / flops_per_second, the bytes sent
    4 hidden (1 - 1/N) value_bytes / bytes_per_second.
    """
    return value_bytes * machine.flops_per_second / (6 * machine.bytes_per_second)


def sums_table() -> str:
    """Markdown: what is added up."""
    lines = [
        "| | sums per run | bytes per token | MB, 100 candidates | MB, 1,000 candidates | MB of layers, N = 1, 2, 4 |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for encoder in ENCODERS:
        per_token = 2 * encoder.layers * encoder.hidden * HALF_BYTES
        requests = (summed_bytes(encoder, load) / 1e6 for load in LOADS)
        weights = ", ".join(f"{encoder.layer_weights * HALF_BYTES / ranks / 1e6:,.0f}" for ranks in (1, 2, 4))
        cells = [encoder.name, f"{sums(encoder)}", f"{per_token:,}", *(f"{size:,.0f}" for size in requests), weights]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table() -> str:
    """Markdown: milliseconds of a request on one GPU, and how many times as fast two and four are."""
    lines = ["| | GPUs | 100 candidates: one GPU | two | four | 1,000 candidates: one GPU | two | four |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for encoder in ENCODERS:
        for machine in MACHINES:
            cells = [encoder.name, machine.name]
            for load in LOADS:
                cells.append(f"{product_seconds(encoder, load, machine) * 1e3:.2f} ms")
                cells += [f"{speedup(encoder, load, machine, ranks):.2f}" for ranks in (2, 4)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


LOADS = (Load.of(90, 100, 12), Load.of(90, 1_000, 12))
"""A MovieLens context (8 films) with 100 and with 1,000 candidates."""
