"""tokenize: texts of a request -> token ids, equal candidates once, those without text not at all.

Every input is checked here, so that a bad request is answered with INVALID_ARG and never reaches the engine, while
its neighbours go on. A request that cannot be done in time is refused at once (``admission.py``).
``text.py`` beside this file is the definition that the model was trained with.

For a scorer on a GPU (``candidate_buckets`` in the config) requests are padded to a few shapes, because Triton batches
equal shapes only. There Triton's own queue bounds the wait, and neither deadline nor ticket is handed on.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The copy beside this file, whatever of that name the environment has.
sys.path.insert(0, str(Path(__file__).parent))

from tritonrank_runtime.admission import Admission, RefusedError
from tritonrank_runtime.backend import array, cancelled, family, invalid, raise_by, unavailable, unexpected
from tritonrank_runtime.candidate_rows import NO_ROW, rows_in_blocks
from tritonrank_runtime.deadlines import deadline_after, seconds_left
from tritonrank_runtime.interpreter import check_interpreter
from tritonrank_runtime.item_report import ItemReader
from tritonrank_runtime.item_text import TextError, decode_texts
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.scorer_counts import counter_folder
from tritonrank_runtime.text import RequestTokenizer

TOLD = ("item_tokens", "truncated", "context_tokens", "unscored", "fields")
"""For callers who ask: tokens as scored, without special ones, whether a text was cut, and why an item could not be
scored, in the request's order; and whose fields do not fit the template (``item_report.py``)."""


class TritonPythonModel:
    def initialize(self, args):
        check_interpreter(Path(__file__).parent)
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.max_candidates = int(settings["max_candidates"])
        self.max_history = int(settings["max_history"])
        self.max_text_bytes = int(settings["max_text_bytes"])
        self.deadline_us = int(settings["deadline_us"])
        self.block_candidates = int(settings.get("block_candidates", 0))
        self.admission = Admission(
            int(settings["queue_requests"]),
            self.deadline_us / 1e6,
            float(settings["queue_share"]),
            counter_folder(settings["queue"]),
            int(settings["queue_delay_us"]) / 1e6,
        )
        self.outputs = {output["name"] for output in config["output"]}
        self.engine_inputs = [
            output["name"]
            for output in config["output"]
            if output["name"] not in {"row_of_candidate", "deadline", "ticket", *TOLD}
        ]
        self.tokenizer = RequestTokenizer.from_folder(Path(__file__).parent, int(settings["item_cache_entries"]))
        self.buckets = None
        if buckets := settings.get("candidate_buckets"):
            self.buckets = Buckets(*(tuple(map(int, one.split(","))) for one in (buckets, settings["token_buckets"])))
        self._open_metrics({"model": args["model_name"], "version": args["model_version"]})

    def _open_metrics(self, labels):
        texts = family("tritonrank_texts_total", "Texts of the requests")
        cut = family("tritonrank_texts_cut_total", "Texts that the ranker read in part or not at all: a budget ended")
        rejected = family(
            "tritonrank_requests_rejected_total", "Requests refused because they could not be done in time"
        )
        without = family("tritonrank_items_without_text_total", "Candidates ranked last because they have no text")
        restarts = family("tritonrank_server_restarts", "Times that a part was lost and the server came back", "GAUGE")
        self.restarts = restarts.Metric(labels=labels)
        self.restarts.set(float(os.environ.get("TRITONRANK_RESTARTS", "0")))
        self.families = [texts, cut, rejected, without, restarts]  # a family must outlive its metrics
        self.rejected, self.without_text = rejected.Metric(labels=labels), without.Metric(labels=labels)
        self.text_metrics = {
            name: tuple(one.Metric(labels=labels | {"field": name}) for one in (texts, cut))
            for name in self.tokenizer.counts
        }
        self.token_metrics = []
        if self.buckets:
            computed = family("tritonrank_tokens_computed_total", "Tokens of the requests with their padding")
            needed = family("tritonrank_tokens_needed_total", "Tokens of the requests, without padding")
            self.families += [computed, needed]
            self.token_metrics = [one.Metric(labels=labels) for one in (computed, needed)]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            if request.is_cancelled():
                return cancelled()
            return self._admit(request)
        except TextError as error:
            return invalid(str(error))
        except RefusedError as error:
            self.rejected.increment(1)
            return unavailable(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer without a traceback
            return unexpected(error, "tokenize")

    def _admit(self, request):
        deadline = deadline_after(request.timeout(), self.deadline_us)
        self.admission.check_room(seconds_left(deadline))  # before any work for a request that has no chance
        tensors, told = self._tokenize(request)
        tokens = self.tokenizer.architecture.needed_tokens(tensors)
        self.admission.check_room(seconds_left(deadline), tokens)
        if self.buckets:
            tensors = self.tokenizer.padded(tensors, self.buckets)
            self._count_tokens(tensors, tokens)
        answer = {name: tensors[name] for name in self.engine_inputs} | told
        self._count_texts(int((told["row_of_candidate"] == NO_ROW).sum()))
        rows = len(tensors[self.engine_inputs[0]])
        ticket = self.admission.admitted(tokens, seconds_left(deadline))
        for name, value in (("deadline", deadline), ("ticket", ticket)):
            if name in self.outputs:
                answer[name] = self._for_the_scorer(value, rows)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in answer.items()])

    def _tokenize(self, request):
        items = self._texts(request, "items", self.max_candidates)
        if not items:
            raise TextError(f"items: {'missing' if items is None else 'empty'}; at least one candidate is needed")
        self._check_item_ids(request, len(items))
        _whole_number(request, "top_k", "0 (all)")
        most_tokens = _whole_number(request, "max_item_tokens", "0 (the ranker's own)")
        query = self._texts(request, "query", 1)
        history = self._texts(request, "history", self.max_history)
        reader = ItemReader(self.tokenizer.rules.item_template, _is_set(request, "strict"))
        texts = reader.render(items, "items")
        candidates = self.tokenizer.items(texts, most_tokens, _is_set(request, "truncate_left"))
        context = self.tokenizer.context(query[0] if query else "", reader.render(history or (), "history"))
        unscored = reader.unscored(texts, candidates)
        rows, row_of_candidate = rows_in_blocks(candidates, self.block_candidates)
        told = {
            "row_of_candidate": row_of_candidate,
            "item_tokens": np.array([len(ids) for ids in candidates], dtype=np.int32),
            "truncated": np.array([ids.is_cut for ids in candidates], dtype=np.bool_),
            "context_tokens": np.array([len(context)], dtype=np.int32),
            "unscored": np.array([reason.encode() for reason in unscored], dtype=np.object_),
            "fields": np.array([reader.fields_json().encode()], dtype=np.object_),
        }
        return self.tokenizer.tensors(context, rows), told

    def _for_the_scorer(self, value, rows):
        # Once per entry of the scorer's batch, which a request is, or has rows of.
        shape = (1,) if self.tokenizer.architecture.batch_is_request else (rows, 1)
        return np.full(shape, value, dtype=np.int64)

    def _count_texts(self, without_text):
        raise_by(self.without_text, without_text)
        for name, counts in self.tokenizer.counts.items():
            for metric, count in zip(self.text_metrics[name], (counts.total, counts.cut), strict=True):
                raise_by(metric, count)
            counts.total = counts.cut = 0

    def _count_tokens(self, padded, needed):
        computed, necessary = self.token_metrics
        computed.increment(self.tokenizer.architecture.computed_tokens(padded))
        necessary.increment(needed)

    def _texts(self, request, name, limit):
        """The texts of a tensor; None where the request does not have it."""
        values = array(request, name)
        if values is None:
            return None
        if values.size > limit:
            raise TextError(f"{name}: {values.size} elements; the limit is {limit}")
        return decode_texts(values.ravel(), name, self.max_text_bytes)

    def _check_item_ids(self, request, candidates):
        item_ids = self._texts(request, "item_ids", self.max_candidates)
        if item_ids is not None and len(item_ids) != candidates:
            raise TextError(
                f"item_ids: {len(item_ids)} elements for {candidates} items; give one id per item or none at all"
            )


def _is_set(request, name):
    """Whether a tensor of the request says yes."""
    tensor = array(request, name)
    return tensor is not None and bool(tensor.ravel()[0])


def _whole_number(request, name, nothing):
    """The number in a tensor; 0, which means ``nothing``, where the request does not have it."""
    tensor = array(request, name)
    if tensor is not None and (number := int(tensor.ravel()[0])) < 0:
        raise TextError(f"{name}: {number}; expected {nothing} or a positive number")
    return 0 if tensor is None else number
