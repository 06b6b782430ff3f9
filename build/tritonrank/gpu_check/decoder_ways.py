"""Ways to score a request with a decoder, for its benchmark: the prefix shared, or once more for every candidate.

Pair by pair is done twice, and the benchmark holds sharing against the faster: by our network, and by transformers'
model of the same sizes with whatever fast attention PyTorch has. Engines for text generation keep the keys of a prompt
that begins alike (prefix reuse): vLLM does so here where it is installed, which is the fairest rival that there is.
"""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonrank_runtime.engine import Logits, Tensors

from tritonrank.errors import ArtifactError
from tritonrank.gpu_check.decoder_shapes import DecoderShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor
    from tritonrank_runtime.decoder_network import DecoderNetwork

    from tritonrank.gpu_check.decoder_shapes import Load

PAIRS_PER_RUN = 16
"""Attention scores of more pairs with a long prefix would not fit a card; such a run fills it all the same."""
POSITIONS = 8_192
WARMUP_RUNS = 3
SPREAD = 0.02
"""Standard deviation of the random weights, as transformers draws them."""


def network_config(shape: DecoderShape) -> dict[str, Any]:
    """The settings of a DecoderConfig for these sizes, of Qwen3's family."""
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "intermediate_size": shape.inner,
        "hidden_act": "silu",
        "ffn": "gated",
        "norm": "rms",
        "norm_eps": 1e-6,
        "norm_offset": False,
        "position": "rotary",
        "max_position_embeddings": POSITIONS,
        "rope_theta": 1_000_000.0,
        "rope_scaling": None,
        "rope_local_theta": None,
        "sliding_window": None,
        "layer_types": ["full_attention"] * shape.layers,
        "attention_bias": False,
        "attention_out_bias": False,
        "ffn_bias": False,
        "query_key_norm": True,
        "attention_softcap": None,
        "logit_softcap": None,
        "query_scale": None,
        "embedding_scale": 1.0,
        "post_norms": False,
        "head_rows": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def qwen3_config(shape: DecoderShape) -> dict[str, Any]:
    """The config.json that vLLM and transformers read for these sizes."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.inner,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


def random_network(shape: DecoderShape, device: str, seed: int = 17) -> "DecoderNetwork":
    """A decoder of these sizes as it serves, with random weights: FP16 but for its head, FP32 on a CPU."""
    import torch
    from tritonrank_runtime.decoder_network import DecoderNetwork
    from tritonrank_runtime.torch_passes import as_half

    torch.manual_seed(seed)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(usual if device == "cpu" else torch.float16)  # in FP32 8B would not fit beside its copy
    try:
        with torch.device(device):
            network = DecoderNetwork(SimpleNamespace(**network_config(shape))).eval()
    finally:
        torch.set_default_dtype(usual)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(std=SPREAD)
    network = network.folded()
    return network if device == "cpu" else as_half(network, device)


class Shared:
    """As it is served: the prefix's keys and values once, then all candidates.

    Args:
        network: as it serves.
        device: where it is.
        is_kept: a prefix that was seen before is not computed again.
    """

    def __init__(self, network: "DecoderNetwork", device: str, *, is_kept: bool = False) -> None:
        self._network, self._device, self._is_kept = network, device, is_kept
        self._states: dict[bytes, tuple[Tensor, Tensor]] = {}

    def run(self, request: Tensors) -> Logits:
        """One request's logits."""
        import torch

        prefix, branches = _tensors(request, self._device)
        with torch.inference_mode():
            key = request["prefix_ids"].tobytes()
            keys, values = self._states.get(key) or self._network.encode_prefix(prefix)
            if self._is_kept:
                self._states[key] = keys, values
            return _logits(self._network.score_branches(keys, values, branches))


class SharedGraph:
    """Prefix and candidates as one CUDA graph for each shape of a request: one launch instead of thousands."""

    def __init__(self, network: "DecoderNetwork", device: str) -> None:
        self._network, self._device = network, device
        self._captured: dict[tuple[int, ...], tuple[Any, Tensor, Tensor, Tensor]] = {}

    def run(self, request: Tensors) -> Logits:
        """One request's logits."""
        import torch

        prefix, branches = (one[None] for one in _tensors(request, self._device))
        shape = (*prefix.shape, *branches.shape)
        if shape not in self._captured:
            self._captured[shape] = self._capture(prefix, branches)
        graph, held_prefix, held_branches, logits = self._captured[shape]
        with torch.inference_mode():
            held_prefix.copy_(prefix)
            held_branches.copy_(branches)
            graph.replay()
            return _logits(logits[0])

    def _capture(self, prefix: "Tensor", branches: "Tensor") -> "tuple[Any, Tensor, Tensor, Tensor]":
        import torch

        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(beside):
                for _ in range(WARMUP_RUNS):
                    self._network.score_batch(prefix, branches)
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._network.score_batch(prefix, branches)
        return graph, prefix, branches, logits


class Packed:
    """As a GPU serves it: the packed engine, its kernels compiled and its graphs captured.

    Args:
        network: as it serves.
        device: where it is.
        loads: what it will be asked, which says how large its launches are.
        kept_prefixes: of each load, that there is room for; 0: none is kept.
    """

    def __init__(self, network: "DecoderNetwork", device: str, loads: "Sequence[Load]", kept_prefixes: int = 0) -> None:
        import torch
        from tritonrank_runtime.decoder import packed_rows
        from tritonrank_runtime.packed.decoder_network import PackedDecoder
        from tritonrank_runtime.packed.launcher import bucket_rows
        from tritonrank_runtime.packed.opening import open_packed_engine

        row_bytes = PackedDecoder.kept_row_bytes(network.config, torch.float32 if device == "cpu" else torch.float16)
        self.engine = open_packed_engine(
            network,
            packed_rows(network.config),
            device,
            context_cache_bytes=kept_prefixes * sum(load.prefix for load in loads) * row_bytes,
            precision="float32" if device == "cpu" else "float16",
            buckets=bucket_rows(max(load.shared for load in loads)),
        )

    def run(self, request: Tensors) -> Logits:
        """One request's logits."""
        (found,) = self.engine.run([request])
        return found


class Pairs:
    """The same network, pair by pair: prefix and candidate in one row, so the prefix once more for every candidate."""

    def __init__(self, network: "DecoderNetwork", device: str) -> None:
        self._network, self._device = network, device

    def run(self, request: Tensors) -> Logits:
        """One request's logits."""
        import torch

        prefix, branches = _tensors(request, self._device)
        parts = []
        with torch.inference_mode():
            for part in torch.split(branches, PAIRS_PER_RUN):
                repeated = prefix.expand(len(part), -1)
                parts.append(self._network.score_batch(repeated, part[:, None])[:, 0])
            return _logits(torch.cat(parts))


class TransformersPairs:
    """transformers' own model of these sizes, pair by pair, with a head of one row: what most rerankers are run as."""

    def __init__(self, shape: DecoderShape, device: str) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3Model

        self._device = device
        settings = {name: value for name, value in qwen3_config(shape).items() if name not in _ONLY_IN_FILES}
        dtype = torch.float32 if device == "cpu" else torch.float16
        with torch.device(device):
            self._model = Qwen3Model(Qwen3Config(**settings, attn_implementation="sdpa")).to(dtype).eval()
            self._head = torch.nn.Linear(shape.hidden, 1).to(dtype)

    def run(self, request: Tensors) -> Logits:
        """One request's logits, of other random weights than the network's."""
        import torch

        prefix, branches = _tensors(request, self._device)
        parts = []
        with torch.inference_mode():
            for part in torch.split(branches, PAIRS_PER_RUN):
                rows = torch.cat([prefix.expand(len(part), -1), part], dim=1).long()
                # All candidates are equally long, so nothing is padded and attention is plainly causal.
                hidden = self._model(input_ids=rows, use_cache=False).last_hidden_state[:, -1]
                parts.append(self._head(hidden)[:, 0])
            return _logits(torch.cat(parts))


class TransformersPrefixReuse(TransformersPairs):
    """The same model with its cache: the prefix once, its keys and values copied for every candidate of a run.

    What engines for text generation do with a prompt that begins alike, without their paged attention.
    """

    def run(self, request: Tensors) -> Logits:
        """One request's logits."""
        import torch

        prefix, branches = _tensors(request, self._device)
        parts = []
        with torch.inference_mode():
            known = self._model(input_ids=prefix[None].long(), use_cache=True).past_key_values
            for part in torch.split(branches, PAIRS_PER_RUN):
                cache = deepcopy(known)  # a run appends to it
                cache.batch_repeat_interleave(len(part))
                hidden = self._model(input_ids=part.long(), past_key_values=cache, use_cache=True).last_hidden_state
                parts.append(self._head(hidden[:, -1])[:, 0])
            return _logits(torch.cat(parts))


_ONLY_IN_FILES = ("architectures", "model_type", "torch_dtype")


class VllmPrefixReuse:
    """vLLM with its cache of prefixes: the first candidate brings the prefix, the others find its keys and values.

    Every request begins with an empty cache, as a new user's does. It scores by one token's logits over the whole
    vocabulary, as published yes/no rerankers do.
    """

    def __init__(self, shape: DecoderShape, scratch: Path) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

        folder = scratch / shape.name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(qwen3_config(shape)))
        self._engine = LLM(
            str(folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            enable_prefix_caching=True,
            dtype="float16",
            max_model_len=POSITIONS,
            gpu_memory_utilization=0.5,
        )
        self._sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1, detokenize=False)

    def run(self, request: Tensors) -> Logits:
        """What the first token's best logit is, for each candidate: no score, but the work of one."""
        if not self._engine.reset_prefix_cache():
            raise ArtifactError("vLLM did not empty its cache of prefixes: its time would be that of another request")
        prefix = request["prefix_ids"].tolist()
        prompts = [{"prompt_token_ids": prefix + branch} for branch in request["branch_ids"].tolist()]
        first = self._engine.generate(prompts[:1], self._sampling, use_tqdm=False)
        others = self._engine.generate(prompts[1:], self._sampling, use_tqdm=False) if len(prompts) > 1 else []
        found = [next(iter(one.outputs[0].logprobs[0].values())).logprob for one in [*first, *others]]
        return np.array(found, dtype=np.float32)


def _tensors(request: Tensors, device: str) -> "tuple[Tensor, Tensor]":
    import torch

    return torch.from_numpy(request["prefix_ids"]).to(device), torch.from_numpy(request["branch_ids"]).to(device)


def _logits(found: "torch.Tensor") -> Logits:
    logits: Logits = found.float().cpu().numpy()
    return logits
