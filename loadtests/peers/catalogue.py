"""Which systems there are, and the settings in which they run.

Peers one to four score the same fine-tuned joint checkpoint. Each is set up as its own documentation would have it on a
CPU, with every core, and in the forms that could be its fastest; what a reader should know stands in ``settings``.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tritonrank_runtime.cores import available_cores

from loadtests.peers.environments import (
    Environment,
    EnvironmentFaultError,
    ensure_environment,
    own_environment,
    run_to_end,
)
from loadtests.peers.libraries import LibrarySystem
from loadtests.peers.servers import InfinitySystem, OurGatewaySystem, OursSystem, PlainTritonSystem
from loadtests.peers.system import System
from loadtests.processes import child_environment

FIRST = "CrossEncoder, torch FP32"
"""The system that ratios refer to."""
BFLOAT16 = "CrossEncoder, torch BF16"
INFINITY_INT8 = "Infinity, ONNX INT8"
BATCH_SIZE = 32
CONVERT_SECONDS = 600.0
WORKERS = "loadtests.peers.workers"
LIBRARY_PACKAGES = ("sentence-transformers", "transformers", "torch", "optimum", "optimum-onnx", "onnxruntime", "numpy")
OUR_PACKAGES = ("tritonrank", "onnxruntime", "tokenizers", "numpy")
CHECKPOINT_FILES = {".json", ".txt", ".model", ".safetensors"}


class Peers:
    """The peers around one checkpoint.

    Args:
        checkpoint: a Hugging Face sequence-classification folder with one label.
        environments: where the virtual environments are.
        work: a folder of this run for converted models and logs.
    """

    def __init__(self, checkpoint: Path, environments: Path, work: Path) -> None:
        self._checkpoint = checkpoint
        self._environments = environments
        self._work = work

    def systems(self) -> list[System]:
        """In the order of the tables."""
        return [
            self._cross_encoder(FIRST, "fp32"),
            self._cross_encoder(BFLOAT16, "bf16"),
            self._cross_encoder("CrossEncoder, ONNX INT8", "int8"),
            self._infinity_system("Infinity, torch FP32", "torch", "checkpoint"),
            self._infinity_system("Infinity, ONNX FP32", "optimum", "optimized"),
            self._infinity_system(INFINITY_INT8, "optimum", "int8"),
            PlainTritonSystem(
                name="plain Triton, ONNX FP32",
                settings={
                    "model": "optimum's ONNX export, FP32",
                    "server": "one Python model with tokenizer and ONNX Runtime, one instance, no dynamic batching",
                    "padding": "to the longest pair of the request, all pairs in one run",
                    "threads": "ONNX Runtime's default (all physical cores)",
                    "client": "tritonclient, gRPC",
                },
                model=lambda: self._converted() / "fp32",
                log=self._log("plain Triton"),
            ),
        ]

    def _cross_encoder(self, name: str, form: Literal["fp32", "bf16", "int8"]) -> System:
        onnx = form == "int8"

        def arguments() -> list[str]:
            model = self._converted() / "int8" if onnx else self._checkpoint
            files = [str(path.relative_to(model)) for path in model.glob("onnx/*.onnx")] if onnx else []
            onnx_file = [argument for path in files for argument in ("--onnx-file", path)]
            threads = ["--threads", str(available_cores()), "--batch-size", str(BATCH_SIZE)]
            return [str(model.resolve()), *threads, *onnx_file, *(["--bfloat16"] if form == "bf16" else [])]

        quantized = "export_dynamic_quantized_onnx_model for this processor's widest integer instructions"
        return LibrarySystem(
            name=name,
            kind="peer",
            settings={
                "model": f"ONNX INT8, dynamic, by {quantized}" if onnx else f"the checkpoint, torch {form.upper()}",
                "padding": f"predict's own sorting by length, batches of {BATCH_SIZE}",
                "threads": "ONNX Runtime's default (all physical cores)" if onnx else f"{available_cores()}",
                "client": "none: in process, asked over a pipe, one call at a time",
            },
            module=f"{WORKERS}.cross_encoder",
            environment=self._library,
            arguments=arguments,
            packages=LIBRARY_PACKAGES,
            takes_pairs=True,
            log=self._log(name),
        )

    def _infinity_system(self, name: str, engine: str, form: str) -> System:
        forms = {
            "checkpoint": "the checkpoint, torch FP32; without BetterTransformer, which optimum 2 no longer has",
            "optimized": "ONNX FP32, optimized by optimum's ORTOptimizer (level 99) beforehand",
            "int8": "ONNX INT8, dynamic, the same file as CrossEncoder's",
        }
        options = ["--engine", engine, "--batch-size", str(BATCH_SIZE), "--no-model-warmup"]
        settings = {
            "model": forms[form],
            "server": f"engine {engine}, its dynamic batching with batches of up to {BATCH_SIZE}",
            "client": "HTTP /rerank with raw scores, a kept connection per client",
        }
        if engine == "optimum":
            settings["quality"] = "this engine leaves out the segment ids, so its scores differ from the checkpoint's"
        return InfinitySystem(
            name=name,
            settings=settings,
            environment=self._infinity,
            model=lambda: self._infinity_folder(form),
            arguments=[*options, *(["--no-bettertransformer"] if engine == "torch" else [])],
            log=self._log(name),
            cache=self._work / "cache" / form,
        )

    def _infinity_folder(self, form: str) -> Path:
        """One folder per form with at most one ONNX file, at its root: Infinity takes any that it finds."""
        folder = self._work / "infinity" / form
        if folder.is_dir():
            return folder
        source = self._checkpoint if form == "checkpoint" else self._converted() / form
        folder.mkdir(parents=True)
        for path in source.iterdir():
            if path.suffix in CHECKPOINT_FILES | {".onnx"}:
                shutil.copyfile(path, folder / path.name)
        for path in source.glob("onnx/*.onnx"):
            shutil.copyfile(path, folder / "model_quantized.onnx")
        return folder

    def _converted(self) -> Path:
        """The checkpoint's ONNX forms, made once per run by the peers' own tools."""
        folder = self._work / "converted"
        if not folder.is_dir():
            draft = Path(tempfile.mkdtemp(prefix="converting-", dir=self._work))
            command = [str(self._library().python), "-m", f"{WORKERS}.convert", str(self._checkpoint.resolve())]
            run_to_end([*command, str(draft.resolve())], CONVERT_SECONDS, child_environment())
            draft.rename(folder)
        return folder

    def _library(self) -> Environment:
        return ensure_environment("sentence-transformers", self._environments)

    def _infinity(self) -> Environment:
        return ensure_environment("infinity", self._environments)

    def _log(self, name: str) -> Path:
        return log_file(self._work, name)


def our_server(name: str, artifacts: Path, work: Path) -> System:
    """A repository of ours behind Triton."""
    settings = {
        "server": "tritonrank serve: the ensemble rank, with the settings of its repository",
        "client": "tritonrank_client, gRPC, one attempt",
    }
    log = log_file(work, f"{name} triton")
    return OursSystem(name=f"{name}, Triton", settings=settings, artifacts=artifacts, log=log)


def our_gateway(name: str, artifacts: Path, work: Path) -> System:
    """The same repository behind Triton and our gateway."""
    settings = {
        "server": "tritonrank serve, and tritonrank_gateway with its defaults before it",
        "client": "tritonrank_client, the gateway's /v1/rank over HTTP, one attempt",
    }
    log = log_file(work, f"{name} gateway")
    return OurGatewaySystem(name=f"{name}, gateway", settings=settings, artifacts=artifacts, log=log)


def our_library(name: str, model: Path, work: Path) -> System:
    """A model artifact of ours in process."""

    def arguments() -> list[str]:
        if not model.is_dir():
            raise EnvironmentFaultError(f"{model}: no such folder; build it: tritonrank build RECIPE")
        return [str(model.resolve())]

    return LibrarySystem(
        name=f"{name}, in process",
        kind="ours",
        settings={
            "server": "none",
            "threads": f"{available_cores()}",
            "client": "none: in process, asked over a pipe, one call at a time",
            "memory": "includes torch, which the package imports for checkpoints and does not use here",
            "artifact": identity(model),
        },
        module=f"{WORKERS}.ours",
        environment=own_environment,
        arguments=arguments,
        packages=OUR_PACKAGES,
        takes_pairs=False,
        log=log_file(work, f"{name} library"),
    )


def our_systems(servers: Mapping[str, Path], libraries: Mapping[str, Path], work: Path) -> list[System]:
    """Ours by name: what is served, the same through the gateway, then what runs in process."""
    return [
        *(our_server(f"ours, {name}", folder, work) for name, folder in servers.items()),
        *(our_gateway(f"ours, {name}", folder, work) for name, folder in servers.items()),
        *(our_library(f"ours, {name}", folder, work) for name, folder in libraries.items()),
    ]


def identity(folder: Path) -> str:
    """The start of the sha256 over the model files in the folder (weights or graphs, by name); empty without any."""
    files = sorted(path for path in folder.glob("*") if path.suffix in {".safetensors", ".onnx", ".bin"})
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16] if files else ""


def log_file(work: Path, name: str) -> Path:
    """Where a system's processes write what they have to say."""
    return work / "logs" / ("".join(letter if letter.isalnum() else "-" for letter in name.lower()) + ".log")
