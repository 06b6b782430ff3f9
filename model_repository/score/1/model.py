"""score: token ids -> logits in the Python backend (target cpu): by ONNX Runtime or PyTorch, on the CPU or a GPU.

The dynamic batcher hands over several requests of any shape at once (ragged); the engine beside this file groups
what has similar length. Where shards.json lies beside it, the engine is N processes that compute each layer together
(``shard_workers.py``). Its metrics say how many tokens padding costs. Whether an entry of the batch is a request or a
row of one is the architecture's to say.

Anyone who reaches the server may send rows straight to this model: they have to keep to the limits of those that
``tokenize`` makes, and to the server's deadline. Work for a request stops when its deadline passes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import EXPIRED
from tritonrank_runtime.architectures import architecture_of_inputs
from tritonrank_runtime.backend import (
    array,
    cancelled,
    failure,
    family,
    invalid,
    let_go,
    raise_by,
    unavailable,
    unexpected,
)
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.deadlines import deadline_after, is_expired
from tritonrank_runtime.engine import EngineLostError, RowsError, Watch
from tritonrank_runtime.engines import ENGINE_PARAMETERS, open_executor
from tritonrank_runtime.inherited import close_inherited_sockets
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.scorer_counts import StartedCounter, counter_folder
from tritonrank_runtime.tracing import open_model_tracing

NEVER = 2**62


class TritonPythonModel:
    def initialize(self, args):
        close_inherited_sockets()
        check_interpreter(Path(__file__).parent)
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.cores = available_cores()
        self.threads = int(settings.get("threads", 0))  # 0: the cores, shared out among busy instances
        # Each architecture has one of them; the engine's own default is right for the other.
        options = {name: int(settings[name]) for name in ENGINE_PARAMETERS if name in settings}
        folder = Path(__file__).parent
        self.workers = None
        if (folder / "shards.json").is_file():
            from tritonrank_runtime.shard_workers import ShardWorkers, sharded_engine

            self.workers = ShardWorkers(folder, state_bytes=options.get("context_cache_bytes", 0))
            self.engine = sharded_engine(self.workers, **options)
        else:
            is_gpu = args["model_instance_kind"] == "GPU"
            device = f"cuda:{args['model_instance_device_id']}" if is_gpu else "cpu"
            self.engine = open_executor(settings.get("executor", "onnxruntime"), folder, device, self.cores, **options)
        self.architecture = architecture_of_inputs(self.engine.input_names)
        self.max_candidates = int(settings.get("max_candidates", 0))
        self.limits = self.architecture.limits(self.engine.input_names, settings)
        self.deadline_us = int(settings["deadline_us"])
        # Triton runs these first, each row of a batch a request, and loads no model whose warm-up fails: they may take
        # longer than requests, on a slow machine or with a short deadline.
        self.warm_ups_left = sum(int(sample["batch_size"]) for sample in config.get("model_warmup", ()))
        self._open_metrics(args)
        self.tracing = open_model_tracing(args["model_name"])
        self.started = StartedCounter(args["model_instance_name"], counter_folder(settings["queue"]))

    def _open_metrics(self, args):
        # A family must outlive its metrics, so both are kept.
        self.families = [
            family(
                "tritonrank_tokens_computed_total", "Tokens of the requests with their padding, kept contexts included"
            ),
            family("tritonrank_tokens_needed_total", "Tokens of the requests, without padding"),
            family("tritonrank_requests_expired_total", "Requests whose deadline passed while they waited"),
            family("tritonrank_requests_stopped_total", "Requests whose deadline passed while they were computed"),
        ]
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.computed, self.needed, self.expired, self.stopped = (one.Metric(labels=labels) for one in self.families)
        self.cache_metrics = {}
        instance = labels | {"instance": args["model_instance_name"]}
        if self.engine.context_cache is not None:
            cache_families = {
                "hits": family("tritonrank_context_cache_hits_total", "Contexts whose keys and values were kept"),
                "misses": family("tritonrank_context_cache_misses_total", "Contexts that had to be computed"),
                "bytes": family("tritonrank_context_cache_bytes", "Bytes kept", "GAUGE"),
            }
            self.families += cache_families.values()
            self.cache_metrics = {name: one.Metric(labels=instance) for name, one in cache_families.items()}
        self.restarts = None
        if self.workers:
            self.families.append(
                family("tritonrank_worker_restarts_total", "How often a scorer's processes were started again")
            )
            self.restarts = self.families[-1].Metric(labels=instance)

    def finalize(self):
        self.started.close()
        self.tracing.close()
        if self.workers:
            self.workers.close()
        let_go(self)

    def execute(self, requests):
        answers, traces = {}, [self.tracing.of(request) for request in requests]
        try:
            self._execute(requests, answers)
        except Exception as error:  # noqa: BLE001 - whatever it is, each client gets an answer without a traceback
            for number in set(range(len(requests))) - set(answers):
                answers[number] = unexpected(error, "score")
        finally:
            self.started.rest()
        for number, trace in enumerate(traces):
            trace.answered("failed" if answers[number].has_error() else "")
            trace.tell(run_requests=len(requests))
        return [answers[number] for number in range(len(requests))]

    def _execute(self, requests, answers):
        read, newest_ticket = {}, 0
        for number, request in enumerate(requests):
            try:
                newest_ticket = max(newest_ticket, _number(request, "ticket", 0))
                if request.is_cancelled():
                    answers[number] = cancelled()
                else:
                    read[number] = self._tensors(request), self._deadline(request)
            except RowsError as error:
                answers[number] = invalid(str(error))
            except Exception as error:  # noqa: BLE001 - as above
                answers[number] = unexpected(error, "score")
        self.warm_ups_left = 0 if newest_ticket else max(0, self.warm_ups_left - len(requests))
        tokens = {number: self.architecture.needed_tokens(tensors) for number, (tensors, _) in read.items()}
        self.started.add(len(requests), sum(tokens.values()), newest_ticket)
        # Requests that are entries of the batch are computed one after the other, and a deadline may pass meanwhile.
        turns = [[number] for number in read] if self.architecture.batch_is_request else [list(read)]
        for turn in turns:
            expired = [number for number in turn if is_expired(read[number][1])]
            for number in expired:
                answers[number] = unavailable(EXPIRED)
                self.started.skip(tokens[number])
            raise_by(self.expired, len(expired))
            if left := [number for number in turn if number not in expired]:
                answers |= zip(left, self._run([read[number] for number in left]), strict=True)

    def _tensors(self, request):
        tensors = {name: array(request, name) for name in self.engine.input_names}
        for name, tensor in tensors.items():
            if tensor is None:
                raise RowsError(f"{name}: missing")
        tensors = self.architecture.one_request(tensors, self.max_candidates)
        self.engine.check(tensors)
        self.limits.check(tensors)
        return tensors

    def _deadline(self, request):
        if self.warm_ups_left:
            return NEVER
        longest = deadline_after(0, self.deadline_us)
        return min(longest, _number(request, "deadline", longest))

    def _run(self, read):
        """The answer to each request; one that the engine refuses must not take its batch mates along.

        Args:
            read: tensors and deadline of each.
        """
        tensors = [one for one, _ in read]
        watch = Watch(lambda place: not is_expired(read[place][1]))
        tokens = sum(map(self.architecture.needed_tokens, tensors))
        try:
            with self.started.busy(tokens, lambda: watch.tokens) as busy_instances:
                threads = self.threads or max(1, self.cores // busy_instances)
                logits = self.engine.run(tensors, threads=threads, watch=watch)
        except EngineLostError as error:
            message = f"{error}; the scorer starts again: send the request once more"
            return [unavailable(message) for _ in tensors]
        except RowsError as error:
            return [invalid(str(error))] if len(read) == 1 else self._run_alone(read)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for each of its status codes
            if len(read) > 1:
                return self._run_alone(read)
            return [unexpected(error, "score: the engine refused these token ids")]
        self._count([one for one, found in zip(tensors, logits, strict=True) if len(found)])
        raise_by(self.stopped, sum(not len(found) for found in logits))
        return [self._answer(one) for one in logits]

    def _run_alone(self, read):
        return [self._run([one])[0] for one in read]

    def _count(self, tensors):
        if tensors:
            computed, needed = self.engine.token_counts(tensors)
            self.computed.increment(computed)
            self.needed.increment(needed)
        if self.restarts:
            raise_by(self.restarts, self.workers.restarts - self.restarts.value())
        for name, metric in self.cache_metrics.items():
            raise_by(metric, getattr(self.engine.context_cache, name) - metric.value())

    def _answer(self, logits):
        if not len(logits):
            return unavailable(f"{EXPIRED}: the work for it was stopped")
        if not np.isfinite(logits).all():
            return failure("score: the engine's logits are not finite numbers", pb_utils.TritonError.INTERNAL)
        shaped = logits[np.newaxis] if self.architecture.batch_is_request else logits[:, np.newaxis]
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", shaped.astype(np.float32))])


def _number(request, name, default):
    """What ``tokenize`` says of an admitted request; rows of a joint ranker say it once each."""
    tensor = array(request, name)
    return default if tensor is None or not tensor.size else int(tensor.flat[0])
