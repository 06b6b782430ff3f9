"""score: token ids -> logits in the Python backend (target cpu): by ONNX Runtime or PyTorch, on the CPU or a GPU.

The dynamic batcher hands over several requests of any shape at once (ragged); ``engine.py`` beside this file groups
what has similar length. Where shards.json lies beside it, the engine is N processes that compute each layer together
(``shard_workers.py``). Its metrics say how many tokens padding costs. The batch dimension is the row of a joint ranker
(context and candidate), and the request of a shared-context one.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import EXPIRED, StartedCounter, is_expired, work_tokens
from engine import EngineLostError, RowsError, available_cores, open_executor
from interpreter import check_interpreter


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter()
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.cores = available_cores()
        self.threads = int(settings.get("threads", 0))  # 0: the cores, shared out among busy instances
        # Each architecture has one of them; the engine's own default is right for the other.
        options = {name: int(settings[name]) for name in ("rows_per_batch", "context_cache_bytes") if name in settings}
        folder = Path(__file__).parent
        self.workers = None
        if (folder / "shards.json").is_file():
            from shard_workers import ShardWorkers, sharded_engine

            self.workers = ShardWorkers(folder)
            self.engine = sharded_engine(self.workers, **options)
        else:
            is_gpu = args["model_instance_kind"] == "GPU"
            device = f"cuda:{args['model_instance_device_id']}" if is_gpu else "cpu"
            self.engine = open_executor(settings.get("executor", "onnxruntime"), folder, device, self.cores, **options)
        self.is_request_batched = config["input"][0]["name"] == "context_ids"
        self.max_candidates = int(settings.get("max_candidates", 0))
        # A family must outlive its metrics, so both are kept.
        self.families = [
            _family(
                "tritonrank_tokens_computed_total", "Tokens of the requests with their padding, kept contexts included"
            ),
            _family("tritonrank_tokens_needed_total", "Tokens of the requests, without padding"),
            _family("tritonrank_requests_expired_total", "Requests whose deadline passed while they waited"),
        ]
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.computed, self.needed, self.expired = (family.Metric(labels=labels) for family in self.families)
        self.cache_metrics = {}
        if self.is_request_batched:
            instance = labels | {"instance": args["model_instance_name"]}
            cache_families = {
                "hits": _family("tritonrank_context_cache_hits_total", "Contexts whose keys and values were kept"),
                "misses": _family("tritonrank_context_cache_misses_total", "Contexts that had to be computed"),
                "bytes": _family("tritonrank_context_cache_bytes", "Bytes kept", "GAUGE"),
            }
            self.families += cache_families.values()
            self.cache_metrics = {name: family.Metric(labels=instance) for name, family in cache_families.items()}
        self.restarts = None
        if self.workers:
            self.families.append(
                _family("tritonrank_worker_restarts_total", "How often a scorer's processes were started again")
            )
            self.restarts = self.families[-1].Metric(labels=labels | {"instance": args["model_instance_name"]})
        self.started = StartedCounter(args["model_instance_name"])

    def finalize(self):
        self.started.close()
        if self.workers:
            self.workers.close()

    def execute(self, requests):
        answers, tensors = {}, {}
        for number, request in enumerate(requests):
            if request.is_cancelled():
                answers[number] = _failure("the client cancelled the request", pb_utils.TritonError.CANCELLED)
                continue
            try:
                tensors[number] = self._tensors(request)
            except RowsError as error:
                answers[number] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
        tokens = {number: work_tokens(values) for number, values in tensors.items()}
        self.started.add(len(requests), sum(tokens.values()))
        # A shared-context ranker computes its requests one after the other, and a deadline may pass meanwhile.
        turns = [[number] for number in tensors] if self.is_request_batched else [list(tensors)]
        for turn in turns:
            expired = [number for number in turn if _has_expired(requests[number])]
            for number in expired:
                answers[number] = _failure(EXPIRED, pb_utils.TritonError.UNAVAILABLE)
                self.started.skip(tokens[number])
            self.expired.increment(len(expired))
            if left := [number for number in turn if number not in expired]:
                answers |= zip(left, self._run([tensors[number] for number in left]), strict=True)
        return [answers[number] for number in range(len(requests))]

    def _tensors(self, request):
        names = self.engine.input_names
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        if self.is_request_batched:
            for name, tensor in tensors.items():
                if len(tensor) != 1:
                    raise RowsError(f"{name}: {len(tensor)} requests in one; send them one by one")
            tensors = {name: tensor[0] for name, tensor in tensors.items()}
            if (found := len(tensors["candidate_ids"])) > self.max_candidates:
                raise RowsError(f"candidate_ids: {found} candidates; the limit is {self.max_candidates}")
        self.engine.check(tensors)
        return tensors

    def _run(self, tensors):
        """The answer to each request; one that the engine refuses must not take its batch mates along."""
        try:
            with self.started.busy(sum(map(work_tokens, tensors))) as busy_instances:
                logits = self.engine.run(tensors, threads=self.threads or max(1, self.cores // busy_instances))
        except EngineLostError as error:
            message = f"{error}; the scorer starts again: send the request once more"
            return [_failure(message, pb_utils.TritonError.UNAVAILABLE) for _ in tensors]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for each of its status codes
            if len(tensors) > 1:
                return [self._run([one])[0] for one in tensors]
            return [_failure(f"the engine refused these token ids: {error}", pb_utils.TritonError.INTERNAL)]
        computed, needed = self.engine.token_counts(tensors)
        self.computed.increment(computed)
        self.needed.increment(needed)
        if self.restarts:
            self.restarts.increment(self.workers.restarts - self.restarts.value())
        cache = getattr(self.engine, "context_cache", None)  # the batched graph has none
        for name, metric in self.cache_metrics.items() if cache else ():
            metric.increment(getattr(cache, name) - metric.value())
        return [self._answer(one) for one in logits]

    def _answer(self, logits):
        shaped = logits[np.newaxis] if self.is_request_batched else logits[:, np.newaxis]
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", shaped.astype(np.float32))])


def _has_expired(request):
    deadline = pb_utils.get_input_tensor_by_name(request, "deadline")
    return deadline is not None and is_expired(int(deadline.as_numpy()[0, 0]))


def _failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _family(name, description, kind="COUNTER"):
    return pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))
