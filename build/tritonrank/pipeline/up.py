"""From a checkpoint alone to a repository: what ``tritonrank up`` makes before it serves.

    checkpoint -> onnx      traced, proved against PyTorch and against the tokenizer it was trained with
               -> served    INT8 where it agrees with the FP32 graph on texts (``label_free.py``), else the FP32 graph
               -> repository

Each is an artifact like those of a recipe, below ``artifacts/up/<name>-<hash>/``, and is made once: its key holds the
contents of the checkpoint. Nothing of PyTorch is imported where nothing is to be made.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tritonrank.artifacts import Draft, read_manifest, sha256_file
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.stage import Stage, bring_up_to_date
from tritonrank.errors import GateError, RecipeError, TritonRankError
from tritonrank.recipe import ModelSettings, QuantizeSettings, Recipe

ITEM_TEMPLATE = "{text}"
MAX_TOKENS = 1_024
"""Tokens of a row, where the model has positions for so many and the caller does not say: a whole page. Attention over
longer rows takes memory with the square of their length."""
MOST_QUERY_TOKENS = 128
QUERY_SHARE = 6
"""A query may have one token in so many of the row, up to ``MOST_QUERY_TOKENS``; the document has the rest."""
FEWEST_TOKENS = 16
TOKENS_PER_RUN = 8_192
"""Rows of one run times the longest row, at the most: bounds the memory of attention."""
DEADLINE_MS = 30_000
CALIBRATION_DOCUMENTS = 4
CALIBRATION_CHARACTERS = 400
UNBOUNDED = 1e9
NOISE = 0.06
"""Of INT8 at the most, where all layers together rank otherwise; single ones go back to FP32 until it holds."""
LARGEST_INT8_BYTES = 1_500_000_000
"""FP32 weights of a model that INT8 is tried with; larger graphs do not fit the format that the quantizer reads."""
SEARCHED_BYTES = 250_000_000
"""FP32 weights of a model up to which layers are tried one by one where all together rank otherwise."""
GOLDEN_REQUESTS = 4
COMPARED_REQUESTS = 2

console = Console()


@dataclass(frozen=True)
class UpOptions:
    """What the caller of ``up`` may choose."""

    revision: str | None = None
    texts: Path | None = None
    max_tokens: int = 0
    """tokens of a row; 0 = ``MAX_TOKENS`` or what the model takes"""
    precision: Literal["auto", "fp32"] = "auto"
    trust_remote_code: bool = False


def made_folder(name: str, options: UpOptions, artifacts: Path) -> Path:
    """Where everything made of a checkpoint lies."""
    base = Path(name).expanduser()
    full = str(base.resolve()) if base.exists() else name
    key = hashlib.sha256(f"{full}@{options.revision or ''}".encode()).hexdigest()[:8]
    return artifacts / "up" / f"{slug(name)}-{key}"


def slug(name: str) -> str:
    """A checkpoint's name as a recipe may have it."""
    words = re.sub(r"[^a-z0-9]+", "-", name.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return words[:48].strip("-") or "ranker"


def make_from_checkpoint(name: str, options: UpOptions, artifacts: Path) -> Path:
    """Bring the artifacts of a checkpoint up to date, one line per step with its seconds.

    Args:
        name: a folder, a hub id, or the packaged MiniLM.
        options: what the caller chose.
        artifacts: the folder of all artifacts.

    Returns:
        The folder that holds ``repository``.

    Raises:
        ArtifactError: the checkpoint is refused, at once where its files tell, or its graph is not exact.
        DataError: the caller's texts cannot be read.
        RecipeError: max_tokens is more than the model takes.
    """
    root = made_folder(name, options, artifacts)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(root):
            for stage in up_stages(name, options, root):
                bring_up_to_date(stage)
    finally:
        with suppress(OSError):  # it holds something, as it does unless the checkpoint was refused
            root.rmdir()
            root.parent.rmdir()
    told = read_manifest(root / "served").metrics
    console.print(f"serving    {told['precision']}: {told['reason']}", highlight=False, markup=False, soft_wrap=True)
    return root


def up_stages(name: str, options: UpOptions, root: Path) -> list[Stage]:
    """The three stages, in order; parents have to be up to date before a later one is asked."""
    recipe = up_recipe(name, options, root)
    tools = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime")
    onnx, served = root / "onnx", root / "served"
    return [
        Stage(
            "export",
            onnx,
            lambda: _export_settings(name, options),
            {},
            lambda draft: _export(name, options, draft),
            revision=1,
            tools=tools,
        ),
        Stage(
            "convert",
            served,
            lambda: _convert_settings(options),
            {"onnx": onnx},
            lambda draft: _convert(options, onnx, draft),
            revision=1,
            tools=("onnx", "onnxruntime"),
        ),
        Stage(
            "assemble",
            root / "repository",
            lambda: _assemble_settings(recipe) | _texts_setting(options),
            {"model": served},
            lambda draft: _assemble(recipe, options, onnx, served, draft),
            revision=1,
            tools=("onnxruntime",),
        ),
    ]


def up_recipe(name: str, options: UpOptions, root: Path) -> Recipe:
    """The recipe that a build would have, as far as serving looks at it."""
    values = {
        "name": slug(name),
        "data": {"source": "sample"},  # never read: there are no data
        "model": {"checkpoint": name, "revision": options.revision},
        "text": {"item_template": ITEM_TEMPLATE},
        "serve": {"deadline_ms": DEADLINE_MS},
    }
    return Recipe.model_validate(values)


def _export_settings(name: str, options: UpOptions) -> dict[str, Any]:
    from tritonrank.rankers.checkpoint_files import ADAPTER, adapter_base
    from tritonrank.rankers.checkpoint_source import folder_of, identity

    found = {"checkpoint": identity(name, options.revision), "max_tokens": options.max_tokens}
    folder = folder_of(name, options.revision, weights=False)
    if (folder / ADAPTER).is_file():
        found["base"] = identity(adapter_base(folder))
    return found | {"trust_remote_code": options.trust_remote_code}


def _export(name: str, options: UpOptions, draft: Draft) -> None:
    from tritonrank.rankers.checkpoint_decoder import is_decoder

    if is_decoder(name, options.revision):
        return _export_decoder(name, options, draft)
    from tritonrank.rankers.checkpoint_check import check_checkpoint
    from tritonrank.rankers.checkpoint_weights import Purpose

    trust = options.trust_remote_code
    with _timed("reading the checkpoint", draft):
        check_checkpoint(name, Purpose.UP, revision=options.revision, trust_remote_code=trust)
        from tritonrank.data.own_texts import golden_pairs
        from tritonrank.rankers.pair_ranker import load_pair_config, load_pair_ranker, longest_pair
        from tritonrank.rankers.pair_text import pair_text

        text = pair_text(name, options.revision, trust_remote_code=trust)
        limit = longest_pair(load_pair_config(name, options.revision, trust_remote_code=trust), text.longest)
        tokens = _row_tokens(name, limit, options.max_tokens)
        query = min(MOST_QUERY_TOKENS, tokens // QUERY_SHARE)
    with _timed("proving the tokenizer", draft):  # before the weights, which may take minutes
        tokenizer = text.save(draft.folder, ITEM_TEMPLATE, query, tokens, golden_pairs())
    with _timed("loading the weights", draft):
        loaded = load_pair_ranker(name, options.revision, trust_remote_code=trust)
    from tritonrank.graphs.pair_graph import export_pairs, largest_difference_to_torch, parameter_bytes

    with _timed("tracing the graph", draft):
        export_pairs(loaded, draft.folder)
    with _timed("comparing it with PyTorch", draft):
        requests = _short(_requests(options))[:COMPARED_REQUESTS]
        difference = largest_difference_to_torch(loaded, draft.folder, tokenizer, requests, tokens)
    draft.metrics |= {"difference": difference, "score": loaded.score, "row_tokens": tokens, "query_tokens": query}
    draft.metrics |= {"weight_bytes": parameter_bytes(loaded), "model_type": str(loaded.config.model_type)}
    console.print(
        f"  {loaded.config.model_type}, {parameter_bytes(loaded) / 4e6:.0f} M parameters, rows of up to {tokens} "
        f"tokens; the score is {loaded.score}; largest difference to PyTorch {difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )


def _export_decoder(name: str, options: UpOptions, draft: Draft) -> None:
    from tritonrank.pipeline.up_decoder import export_decoder

    told = export_decoder(
        ModelSettings(architecture="decoder", checkpoint=name, revision=options.revision),
        ITEM_TEMPLATE,
        lambda limit: _row_tokens(name, limit, options.max_tokens),
        lambda left: min(MOST_QUERY_TOKENS, left // QUERY_SHARE),
        _short(_requests(options))[:COMPARED_REQUESTS],
        draft,
        _timed,
    )
    draft.metrics |= {"difference": told.difference, "score": told.score, "row_tokens": told.row_tokens}
    draft.metrics |= {"query_tokens": told.query_tokens, "weight_bytes": told.parameters * 4}
    draft.metrics |= {"model_type": told.model_type}
    console.print(
        f"  {told.model_type}, {told.parameters / 1e6:.0f} M parameters, rows of up to {told.row_tokens} tokens with "
        f"the prompt; the score is {told.score}; largest difference to PyTorch {told.difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )


def _row_tokens(name: str, limit: int, wanted: int) -> int:
    """Tokens of the longest row: what is wanted, else ``MAX_TOKENS``, as far as the model goes; padded to eights."""
    if wanted > limit or (wanted and wanted < FEWEST_TOKENS):
        raise RecipeError(f"--max-tokens {wanted}: {name} takes rows of {FEWEST_TOKENS} to {limit} tokens")
    tokens = min(wanted or MAX_TOKENS, limit) // 8 * 8
    if tokens < FEWEST_TOKENS:
        raise RecipeError(f"{name}: takes rows of {limit} tokens at the most; a pair of texts needs {FEWEST_TOKENS}")
    return tokens


def _convert_settings(options: UpOptions) -> dict[str, Any]:
    from tritonrank.system.machine import has_int8_dot_product

    return {"precision": options.precision, "dot_product": has_int8_dot_product()} | _texts_setting(options)


def _texts_setting(options: UpOptions) -> dict[str, Any]:
    return {"texts": sha256_file(options.texts) if options.texts else "packaged"}


def _convert(options: UpOptions, onnx: Path, draft: Draft) -> None:
    """INT8 if it agrees with the FP32 graph, else that; a copy either way, with the verdict in the metrics."""
    from tritonrank_runtime.engines import loaded_files
    from tritonrank_runtime.text import copy_text_files

    copy_text_files(onnx, draft.folder)
    reason = "asked for" if options.precision == "fp32" else _int8(options, onnx, draft)
    is_int8 = reason is None
    if not is_int8:
        for path in draft.folder.glob("*.onnx"):
            path.unlink()
        for path in loaded_files(onnx):
            shutil.copyfile(path, draft.folder / path.name)
    judged = draft.metrics.get("agreement", "")
    draft.metrics |= {"precision": "INT8" if is_int8 else "FP32", "reason": judged if is_int8 else reason}


def _int8(options: UpOptions, onnx: Path, draft: Draft) -> str | None:
    """Write the INT8 graph and judge it; why it may not be served, None if it may."""
    size = read_manifest(onnx).metrics["weight_bytes"]
    if size > LARGEST_INT8_BYTES:
        return f"{size / 1e9:.1f} GB of weights are more than INT8 is made of here ({LARGEST_INT8_BYTES / 1e9:.1f} GB)"
    # All layers first, which most rankers bear: to find the few that disturb costs a run of the graph per layer.
    reason = _try_int8(options, onnx, draft, QuantizeSettings(noise=UNBOUNDED), "making INT8")
    if reason is not None and size <= SEARCHED_BYTES:
        console.print(f"  {reason}", highlight=False, markup=False, soft_wrap=True)
        reason = _try_int8(options, onnx, draft, QuantizeSettings(noise=NOISE), "making INT8 of fewer layers")
    return reason


def _try_int8(options: UpOptions, onnx: Path, draft: Draft, settings: QuantizeSettings, what: str) -> str | None:
    from tritonrank.quantize.int8 import quantizable_nodes, quantize_graphs

    requests = _requests(options)
    try:
        with _timed(what, draft):
            nodes = quantize_graphs(onnx, draft.folder, _short(requests[1::2] or requests), settings)
    except (GateError, RecipeError) as error:
        return str(error)
    draft.metrics |= {"int8_layers": len(nodes), "layers": len(quantizable_nodes(onnx, []))}
    with _timed(what.replace("making", "judging"), draft):
        return _judge(requests[::2], onnx, draft)


def _judge(requests: list[Any], onnx: Path, draft: Draft) -> str | None:
    """Compare with the FP32 graph; what is wrong, None if nothing is."""
    from tritonrank.judge.label_free import agreement
    from tritonrank.judge.open_scorer import open_scorer

    judged = [request for request in requests if len(request.items) > 1] or requests
    int8, fp32 = open_scorer(draft.folder), open_scorer(onnx)
    found = agreement([int8.score(one) for one in judged], [fp32.score(one) for one in judged])
    draft.metrics |= {"label_free": found.as_metrics(), "agreement": str(found)}
    return None if found.passed else f"INT8 ranks otherwise: {'; '.join(found.faults)}. {found}"


def _assemble_settings(recipe: Recipe) -> dict[str, Any]:
    from tritonrank.pipeline.assemble import assemble_settings

    return assemble_settings(recipe)


def _assemble(recipe: Recipe, options: UpOptions, onnx: Path, served: Path, draft: Draft) -> None:
    from tritonrank_runtime.cores import available_cores

    from tritonrank.judge.open_scorer import open_scorer
    from tritonrank.serve.models import write_golden_cases, write_models

    tokens = int(read_manifest(onnx).metrics["row_tokens"])
    rows = max(1, min(recipe.serve.rows_per_batch, TOKENS_PER_RUN // tokens))
    serve = recipe.serve.model_copy(update={"rows_per_batch": rows})
    write_models(serve, served, draft.folder, available_cores())
    model, scorer = read_manifest(served), open_scorer(served)
    cases = [
        {"query": one.query, "history": [], "items": one.items, "scores": scorer.score(one).tolist()}
        for one in _short(_requests(options))[:GOLDEN_REQUESTS]
    ]
    awkward = [cases[0]["items"][0], "", json.dumps({"text": cases[0]["items"][0]}), " \t"]
    scores = scorer.score(_request("", awkward)).tolist()
    cases.append({"query": "", "history": [], "items": awkward, "scores": scores})
    identity = {"artifact": model.artifact[:16], "recipe": recipe.name, "stage": model.stage}
    write_golden_cases(identity, cases, draft.folder)
    draft.metrics |= {"artifact": identity["artifact"], "golden_cases": len(cases)}


def _request(query: str, items: list[str]) -> Any:
    from tritonrank.rankers.server_scorer import Request

    return Request(query, [], items)


def _requests(options: UpOptions) -> list[Any]:
    from tritonrank.data.own_texts import packaged_requests, requests_of_file

    return requests_of_file(options.texts) if options.texts else packaged_requests()


def _short(requests: list[Any]) -> list[Any]:
    """A few documents of each request, and of long ones their beginning."""
    return [
        _request(one.query, [text[:CALIBRATION_CHARACTERS] for text in one.items[:CALIBRATION_DOCUMENTS]])
        for one in requests
    ]


@contextmanager
def _timed(what: str, draft: Draft) -> Iterator[None]:
    """Say what is being done, and record its seconds, of the clock and of the processor."""
    console.print(f"  {what} ...", highlight=False)
    started, worked = time.monotonic(), time.process_time()
    try:
        yield
    except TritonRankError:
        raise
    finally:
        seconds = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - worked}
        draft.metrics.setdefault("steps", {})[what] = {name: round(value, 2) for name, value in seconds.items()}
