"""ranker: texts of a request -> the ranking, in one process: tokenize, score and select without a hop between them.

``execute`` reads a request, refuses what is wrong or cannot be done in time (``admission.py``), and hands the rest to
the lanes (``lanes.py``): threads that compute, select and answer through the request's response sender. So Triton's
thread is free at once, the next request is tokenized while this one is computed, and the queue is one that the gate can
see. All lanes share one engine, with one copy of the weights and one memory of contexts.

Work for a request stops when its deadline passes. Whatever goes wrong in one request is answered to that request alone.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import EXPIRED, Admission, RefusedError
from tritonrank_runtime.backend import (
    Tally,
    array,
    cancelled,
    failure,
    family,
    invalid,
    let_go,
    unavailable,
    unexpected,
)
from tritonrank_runtime.candidate_rows import candidate_scores
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.deadlines import deadline_after, is_expired, seconds_left
from tritonrank_runtime.engine import EngineLostError, RowsError, Watch
from tritonrank_runtime.engines import ENGINE_PARAMETERS, open_executor
from tritonrank_runtime.gate_metrics import GateMetrics, artifact_gauges
from tritonrank_runtime.inherited import close_inherited_sockets
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.lanes import Lanes
from tritonrank_runtime.request_reading import RequestLimits, RequestReader
from tritonrank_runtime.scorer_counts import LaneCounter
from tritonrank_runtime.selection import best_first
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.tracing import open_model_tracing
from tritonrank_runtime.tuning import Tuning

SWITCH_SECONDS = 0.0005
"""After so long the thread that reads texts lets one go on that has computed. Python's own 5 ms are a request's."""
LONG_WAIT_SECONDS = 0.001
"""Who waited longer may be gone: asking Triton takes a tenth of this."""
WARM_UP = ((16, 1, 8), (64, 10, 16), (96, 100, 16))
"""Context tokens, candidates and their tokens."""
STEPS = {"tokenize": "texts to token ids", "queue": "waiting for a lane", "score": "computing", "select": "answering"}


class Job:
    """One admitted request on its way to its answer."""

    def __init__(self, sender, read, tokens, deadline, ticket, trace):
        self.sender, self.read, self.tokens = sender, read, tokens
        self.deadline, self.ticket, self.trace = deadline, ticket, trace
        self.is_answered = False
        self.queued_at = time.monotonic()

    def answer(self, response):
        self.is_answered = True
        self.trace.answered("failed" if response.has_error() else "")
        self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(__file__).parent
        close_inherited_sockets()
        check_interpreter(folder)
        sys.setswitchinterval(SWITCH_SECONDS)
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        identity = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        self.artifact = np.array([identity["artifact"].encode()], dtype=np.object_)
        self.cores = available_cores()
        self.threads = int(settings.get("threads", 0))  # 0: the cores, shared out among busy lanes
        self.deadline_us = int(settings["deadline_us"])
        self.tokenizer = RequestTokenizer.from_folder(folder, int(settings["item_cache_entries"]))
        self.reader = RequestReader(self.tokenizer, RequestLimits.of(settings))
        # Each architecture has one of them; the engine's own default is right for the other.
        options = {name: int(settings[name]) for name in ENGINE_PARAMETERS if name in settings}
        is_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if is_gpu else "cpu"
        self.engine = open_executor(settings.get("executor", "onnxruntime"), folder, device, self.cores, **options)
        self._warm_up(int(settings["max_candidates"]))
        self.batch_tokens = int(settings["batch_tokens"])
        self.counters = []
        self.counters += [LaneCounter(self.counters) for _ in range(int(settings["lanes"]))]
        self.admission = Admission(
            int(settings["queue_requests"]),
            self.deadline_us / 1e6,
            float(settings["queue_share"]),
            states=lambda: [counter.state for counter in self.counters],
        )
        self._open_metrics(args, identity["artifact"])
        self.tracing = open_model_tracing(args["model_name"])
        self.lanes = Lanes(len(self.counters), self._work, self.batch_tokens)
        own = {name: float(settings[name]) for name in ("queue_share", "batch_tokens")}
        self.tuning = Tuning(own, pb_utils.Logger.log_warn)

    def _warm_up(self, most_candidates):
        """Requests of some sizes: memory is allocated before others come, and what cannot compute does not start."""
        rules = self.tokenizer.rules
        for context, candidates, tokens in WARM_UP:
            rows = [(0,) * min(tokens, rules.candidate_tokens)] * min(candidates, most_candidates)
            self.engine.run([self.tokenizer.tensors([0] * min(context, rules.context_tokens), rows)])

    def _open_metrics(self, args, artifact):
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self.tally = Tally()
        self.gate = GateMetrics(self.tally, labels, [*self.tokenizer.counts], self.admission)
        count = self.gate.counter
        self.computed = count(
            "tritonrank_tokens_computed_total", "Tokens of the requests with their padding, kept contexts included"
        )
        self.needed = count("tritonrank_tokens_needed_total", "Tokens of the requests, without padding")
        self.expired = count("tritonrank_requests_expired_total", "Requests whose deadline passed while they waited")
        self.stopped = count(
            "tritonrank_requests_stopped_total", "Requests whose deadline passed while they were computed"
        )
        self.runs = count("tritonrank_runs_total", "Runs of the engine, for one request or for several that waited")
        self.busy_seconds = count("tritonrank_lane_busy_seconds_total", "Seconds that lanes computed, of all together")
        self.scored = count("tritonrank_requests_scored_total", "Requests that the engine has computed")
        self.step_seconds = {
            step: count(f"tritonrank_{step}_seconds_total", f"Seconds of the requests, {what}")
            for step, what in STEPS.items()
        }
        said = "Tokens that a run takes at most; 0: one request at a time"
        self.batch_gauge = self.gate.gauge("tritonrank_batch_tokens", said)
        self.batch_gauge.set(self.batch_tokens)
        self.artifact_gauges = artifact_gauges(labels, artifact, Path(args["model_repository"]))
        if self.engine.context_cache is not None:
            instance = labels | {"instance": args["model_instance_name"]}
            cache = self.engine.context_cache
            for name, metric, what, kind in (
                ("hits", "hits_total", "Contexts whose keys and values were kept", "COUNTER"),
                ("misses", "misses_total", "Contexts that had to be computed", "COUNTER"),
                ("bytes", "bytes", "Bytes kept", "GAUGE"),
            ):
                kept = self.tally.keep(family(f"tritonrank_context_cache_{metric}", what, kind))
                self.tally.follow([kept.Metric(labels=instance)], lambda name=name: [getattr(cache, name)])

    def finalize(self):
        self.lanes.close()
        self.tally.close()
        self.tracing.close()
        let_go(self)

    # ---- Triton's thread

    def execute(self, requests):
        if self.tuning.look():
            self._tune(self.tuning.values)
        return [self._admit(request) for request in requests]

    def _tune(self, values):
        self.admission.queue_share = values["queue_share"]
        self.lanes.most_tokens = int(values["batch_tokens"])
        self.batch_gauge.set(self.lanes.most_tokens)

    def _admit(self, request):
        """The answer to a request that ends here; None for one that a lane will answer."""
        trace, began = self.tracing.of(request), time.monotonic()
        try:
            deadline = deadline_after(request.timeout(), self.deadline_us)
            self.admission.check_room(seconds_left(deadline))  # before any work for a request that has no chance
            read = self.reader.read(lambda name: array(request, name))
            tokens = self.tokenizer.architecture.needed_tokens(read.tensors)
            self.admission.check_room(seconds_left(deadline), tokens)
            self.gate.read(read.without_text, self.tokenizer.counts)
            ticket = self.admission.admitted(tokens, seconds_left(deadline))
            job = Job(request.get_response_sender(), read, tokens, deadline, ticket, trace)
            trace.step("tokenize", began, job.queued_at)
            self.lanes.put(job, tokens)
        except TextError as error:
            trace.tell("invalid")
            return invalid(str(error))
        except RefusedError as error:
            self.gate.refused(error)
            trace.tell("refused")
            return unavailable(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer without a traceback
            trace.tell("fault")
            return unexpected(error, "tokenize")
        self.tally.add(self.step_seconds["tokenize"], time.monotonic() - began)
        return None

    # ---- the lanes' threads

    def _work(self, lane, jobs):
        counter = self.counters[lane]
        counter.add(len(jobs), sum(job.tokens for job in jobs), jobs[-1].ticket)
        try:
            if wanted := [job for job in jobs if self._is_wanted(job, counter)]:
                self._run(wanted, counter)
        except Exception as error:  # noqa: BLE001 - whatever it is, each client gets an answer without a traceback
            for job in jobs:
                if not job.is_answered:
                    job.answer(unexpected(error, "score"))
        finally:
            counter.rest()
            for job in jobs:  # whose callers have their answers
                job.trace.tell(candidates=len(job.read.row_of_candidate), tokens=job.tokens, run_requests=len(jobs))

    def _is_wanted(self, job, counter):
        waited = time.monotonic() - job.queued_at
        job.trace.step("wait", job.queued_at, job.queued_at + waited)
        if is_expired(job.deadline):
            job.answer(unavailable(EXPIRED))
            self.tally.add(self.expired, 1)
        elif waited > LONG_WAIT_SECONDS and job.sender.is_cancelled():
            job.answer(cancelled())
        else:
            self.tally.add(self.step_seconds["queue"], waited)
            return True
        counter.skip(job.tokens)
        return False

    def _run(self, jobs, counter):
        """Answer each request; one that the engine refuses must not take those along that are computed with it."""
        tensors = [job.read.tensors for job in jobs]
        watch = Watch(lambda place: not is_expired(jobs[place].deadline))
        began = time.monotonic()
        try:
            with counter.busy(sum(job.tokens for job in jobs), lambda: watch.tokens) as busy_lanes:
                threads = self.threads or max(1, self.cores // busy_lanes)
                logits = self.engine.run(tensors, threads=threads, watch=watch)
        except EngineLostError as error:
            for job in jobs:
                job.answer(unavailable(f"{error}; the scorer starts again: send the request once more"))
            return
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has a class for each of its status codes
            if len(jobs) > 1:
                for job in jobs:
                    self._run([job], counter)
                return
            is_refused = isinstance(error, RowsError)
            jobs[0].answer(
                invalid(str(error)) if is_refused else unexpected(error, "score: the engine refused these token ids")
            )
            return
        computed_at = time.monotonic()
        self.tally.add(self.runs, 1)
        self.tally.add(self.busy_seconds, computed_at - began)
        self.tally.add(self.scored, sum(len(found) > 0 for found in logits))
        for job, found in zip(jobs, logits, strict=True):
            job.trace.step("score", began, computed_at)
            selecting_at = time.monotonic()
            answer = self._answer(job.read, found)
            job.trace.step("select", selecting_at, time.monotonic())
            job.answer(answer)
        self.tally.add(self.step_seconds["score"], len(jobs) * (computed_at - began))
        self.tally.add(self.step_seconds["select"], time.monotonic() - computed_at)
        self._count([one for one, found in zip(tensors, logits, strict=True) if len(found)])
        self.tally.add(self.stopped, sum(not len(found) for found in logits))

    def _count(self, tensors):
        if tensors:
            computed, needed = self.engine.token_counts(tensors)
            self.tally.add(self.computed, computed)
            self.tally.add(self.needed, needed)

    def _answer(self, read, logits):
        if not len(logits):
            return unavailable(f"{EXPIRED}: the work for it was stopped")
        if not np.isfinite(logits).all():
            return failure("score: the engine's logits are not finite numbers", pb_utils.TritonError.INTERNAL)
        scores = candidate_scores(logits.astype(np.float32, copy=False), read.row_of_candidate)
        order = best_first(scores, read.item_ids, read.top_k)
        answer = {"indices": order, "scores": scores[order], "artifact": self.artifact} | read.told
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in answer.items()])
