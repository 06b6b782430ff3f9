"""Put what a GPU machine needs to check a ranker into one small file: weights once, in FP16, and requests with scores.

A graph of each precision holds everything again; a checkpoint in FP16 holds it once, and graphs are made of it where
they are needed. Rounding weights to FP16 changes scores a little. So the reference scores are computed here, on the CPU
in FP32, with the weights as they are in the pack: what a GPU then differs by is its own doing. How far the rounding
itself moved the scores is recorded.

The same artifacts give the same archive, byte for byte: no dates, owners or paths are in it.
"""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import load_file, save_file
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.repository import IDENTITY_FILE, model_folders
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files
from tritonrank_runtime.torch_engine import open_torch_engine
from tritonrank_runtime.torch_passes import CONFIG_FILE, WEIGHTS_FILE

from tritonrank.artifacts import read_manifest, sha256_file, verify_artifact, whole_file
from tritonrank.data.workload import workload_lines
from tritonrank.data.workload_settings import WorkloadSettings
from tritonrank.errors import ArtifactError, DataError
from tritonrank.gpu_check.packed import PACK_FILE, PACK_FORMAT, REQUESTS_FILE, PackedRequest
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.agreement import top_overlap
from tritonrank.rankers.scorers import EngineScorer, Request, Scores
from tritonrank.serve.serving import golden_requests
from tritonrank.system.progress import track

TIMED_REQUESTS = {10: 200, 100: 100, 1_000: 30}
"""Candidates -> requests to be timed: enough to see a p99 of small ones, few enough to stay small."""
SCORED_REQUESTS = {10: 20, 100: 20, 1_000: 4}
"""Candidates -> requests whose scores are kept, beside the golden ones."""
USERS = "zipf:0"
"""Any user may come, some twice: a small dataset has fewer contexts than requests. Nothing is kept between requests."""
LARGEST_PACK_BYTES = 50_000_000
GZIP_LEVEL = 6

console = Console(emoji=False)


def make_pack(artifacts: Path, out: Path) -> Path:
    """Write a pack and say what is in it.

    Args:
        artifacts: ``artifacts/<recipe>``, built to the end.
        out: the archive, which appears whole or not at all; of a folder: ``<recipe>.pack.tar.gz`` in it.

    Returns:
        The path of the archive.

    Raises:
        ArtifactError: a stage's output is missing or damaged, or the archive cannot be written.
    """
    checkpoint = _smallest_checkpoint(artifacts)
    made_from = verify_artifact(checkpoint)
    repository = read_manifest(artifacts / "repository")
    answers = model_folders(artifacts / "repository").answers
    recipe = json.loads((answers / IDENTITY_FILE).read_text(encoding="utf-8"))["recipe"]
    path = out / f"{recipe}.pack.tar.gz" if out.is_dir() else out
    with tempfile.TemporaryDirectory(prefix="tritonrank-pack-") as scratch:
        folder = Path(scratch)
        _write_half_checkpoint(checkpoint, folder)
        requests, left_out = _requests(artifacts, repository.settings["serve"]["max_candidates"])
        scored, rounding = _scored(requests, folder, artifacts / "onnx")
        lines = (json.dumps(asdict(request), ensure_ascii=False) + "\n" for request in scored)
        (folder / REQUESTS_FILE).write_text("".join(lines), encoding="utf-8")
        files = {
            one.name: {"bytes": one.stat().st_size, "sha256": sha256_file(one)} for one in sorted(folder.iterdir())
        }
        manifest = {
            "format": PACK_FORMAT,
            "recipe": recipe,
            "artifact": made_from.artifact,
            "architecture": TextRules.load(folder).architecture,
            "parameters": sum(tensor.numel() for tensor in load_file(folder / WEIGHTS_FILE).values()),
            "serve": repository.settings["serve"],
            "fp32_kinds": _fp32_kinds(artifacts),
            "rounding": rounding,
            "left_out": left_out,
            "tools": made_from.tools,
            "files": files,
        }
        (folder / PACK_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _write_archive(folder, [PACK_FILE, *files], path)
    _show(path, manifest, scored)
    return path


def _smallest_checkpoint(artifacts: Path) -> Path:
    """The checkpoint that the graphs were made of: the last that the recipe makes."""
    exported = read_manifest(artifacts / "onnx").parents["checkpoint"]
    for name in ("student", "pruned", "teacher"):
        folder = artifacts / name
        if folder.is_dir() and read_manifest(folder).artifact == exported:
            return folder
    raise ArtifactError(
        f"{artifacts}: none of student, pruned and teacher is the checkpoint that onnx was made of; finish the build: "
        "tritonrank build RECIPE"
    )


def _write_half_checkpoint(checkpoint: Path, folder: Path) -> None:
    weights = {name: tensor.half().contiguous() for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items()}
    if infinite := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ArtifactError(f"{checkpoint}: FP16 cannot hold the weights of {', '.join(infinite)}")
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a path of this machine
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"dtype": "float16"}, indent=1) + "\n", encoding="utf-8")
    copy_text_files(checkpoint, folder)


def _requests(artifacts: Path, max_candidates: int) -> tuple[list[tuple[Request, bool]], dict[str, str]]:
    """Requests, each with whether it is to be scored; and the sizes that server or catalogue do not allow, with why."""
    golden = golden_requests(artifacts / "repository")
    # Executors are asked for rows, and an item without text has none.
    requests = [(request, True) for request, scores in golden if NO_TEXT_SCORE not in scores]
    left_out = {}
    for candidates, timed in TIMED_REQUESTS.items():
        if candidates > max_candidates:
            left_out[str(candidates)] = f"serve.max_candidates is {max_candidates}"
            continue
        scored = SCORED_REQUESTS[candidates]
        settings = WorkloadSettings(requests=timed + scored, candidates=str(candidates), users=USERS)
        try:
            lines = list(workload_lines(artifacts, settings))
        except DataError as error:
            left_out[str(candidates)] = str(error)
            continue
        for place, line in enumerate(lines):
            requests.append((Request(line["query"], list(line["history"]), line["items"]), place >= timed))
    return requests, left_out


def _scored(
    requests: Sequence[tuple[Request, bool]], folder: Path, onnx: Path
) -> tuple[list[PackedRequest], dict[str, float]]:
    """The requests with their scores, and what rounding the weights changed."""
    packed = EngineScorer(RequestTokenizer.from_folder(folder, 100_000), open_torch_engine(folder).run)
    exact = open_scorer(onnx)
    result, differences, overlaps = [], [], []
    for request, is_scored in track(requests, "reference scores"):
        scores: Scores | None = None
        if is_scored:
            scores, unrounded = packed.score(request), exact.score(request)
            differences.append(float(np.abs(scores - unrounded).max()))
            overlaps.append(top_overlap(scores, unrounded))
        listed = None if scores is None else [round(float(score), 6) for score in scores]
        result.append(PackedRequest(request.query, request.history, request.items, listed))
    return result, {"largest_difference": max(differences), "top_10_overlap": float(np.mean(overlaps))}


def _fp32_kinds(artifacts: Path) -> list[str]:
    """Kinds of operators that the judged FP16 graph keeps in FP32, where there is one."""
    if not (artifacts / "fp16").is_dir():
        return []
    kinds: list[str] = read_manifest(artifacts / "fp16").metrics.get("fp32_kinds", [])
    return [kind for kind in kinds if kind != "score head"]


def _write_archive(folder: Path, names: Sequence[str], path: Path) -> None:
    with (
        whole_file(path, "choose another file") as draft,
        draft.open("wb") as file,
        gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            content = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)  # nobody's, of no date
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))


def _show(path: Path, manifest: Mapping[str, Any], requests: Sequence[PackedRequest]) -> None:
    """What is in it for people, then one line of JSON for scripts."""
    size, parameters = path.stat().st_size, manifest["parameters"]
    rounding = manifest["rounding"]["largest_difference"]
    timed = {k: sum(len(one.items) == k and one.scores is None for one in requests) for k in TIMED_REQUESTS}
    listed = ", ".join(f"{count} of {candidates:,}" for candidates, count in timed.items() if count)
    scored = sum(one.scores is not None for one in requests)
    console.print(f"[bold]{path}[/]: {size / 1e6:.1f} MB", highlight=False)
    console.print(
        f"  {parameters / 1e6:.1f} M parameters in FP16 ({2 * parameters / 1e6:.1f} MB before compression); {listed} "
        f"candidates to time, {scored} requests with the CPU's scores",
        highlight=False,
    )
    console.print(f"  rounding the weights to FP16 changed scores by {rounding:.4f} at the most", highlight=False)
    for candidates, why in manifest["left_out"].items():
        console.print(f"  [yellow]no requests of {candidates} candidates[/]: {why}", highlight=False)
    if size > LARGEST_PACK_BYTES:
        console.print(
            f"  [yellow]more than {LARGEST_PACK_BYTES / 1e6:.0f} MB[/]: carry it some other way", highlight=False
        )
    console.print(f"Next, on the GPU machine: tritonrank gpu-check {path.name}", highlight=False)
    print(json.dumps({"pack": str(path), "bytes": size, "parameters": parameters, "requests": timed, "scored": scored}))
