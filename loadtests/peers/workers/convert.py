"""The checkpoint in the forms that the ONNX peers load, each made by the peers' own tools.

    python -m loadtests.peers.workers.convert CHECKPOINT OUTPUT

Runs in the sentence-transformers environment and writes three folders, each complete with config and tokenizer:

    fp32/        optimum's export
    optimized/   the same through optimum's ORTOptimizer at level 99, as Infinity does at start with older versions
    int8/        sentence-transformers' export_dynamic_quantized_onnx_model for this processor, below onnx/ as it wants
"""

import shutil
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig
from sentence_transformers import CrossEncoder
from sentence_transformers.backend import export_dynamic_quantized_onnx_model


def main(checkpoint: Path, output: Path) -> None:
    fp32, optimized, int8 = output / "fp32", output / "optimized", output / "int8"
    for folder in (fp32, optimized, int8):
        folder.mkdir(parents=True)
        copy_tokenizer(checkpoint, folder)
    ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True).save_pretrained(fp32)
    plain = ORTModelForSequenceClassification.from_pretrained(fp32, provider="CPUExecutionProvider")
    optimizer = ORTOptimizer.from_pretrained(plain)
    optimizer.optimize(OptimizationConfig(optimization_level=99), save_dir=optimized, file_suffix="")
    model = CrossEncoder(str(checkpoint), device="cpu", backend="onnx", model_kwargs={"export": True})
    export_dynamic_quantized_onnx_model(model, quantization_for_this_processor(), str(int8))
    model.save_pretrained(str(int8))
    (int8 / "onnx" / "model.onnx").unlink(missing_ok=True)


def copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Everything of the checkpoint but its weights and what is ours."""
    for path in checkpoint.iterdir():
        if path.suffix in {".json", ".txt", ".model"} and path.name not in {"manifest.json", "text.json"}:
            shutil.copyfile(path, folder / path.name)


def quantization_for_this_processor() -> str:
    """sentence-transformers' name for the widest integer instructions in /proc/cpuinfo."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    for flag, name in (("avx512_vnni", "avx512_vnni"), ("avx512f", "avx512"), ("avx2", "avx2")):
        if flag in flags:
            return name
    return "arm64"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
