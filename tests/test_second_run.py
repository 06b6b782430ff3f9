"""A build that is up to date, its table and its demo need nothing of what models need: the second run is quick."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "optimum", "onnx", "scipy")
SECOND_RUN = """
import sys
for name in {heavy}:
    sys.modules[name] = None
import tritonrank.pipeline.stages, tritonrank.report.summary_table, tritonrank.serve.demo
{further}
"""


def ran(further: str = "") -> subprocess.CompletedProcess[str]:
    program = SECOND_RUN.format(heavy=HEAVY, further=further)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_what_the_second_run_imports_is_light() -> None:
    done = ran()
    assert done.returncode == 0, done.stderr


def test_the_block_is_real() -> None:
    done = ran("import tritonrank.train.finetune")
    assert done.returncode != 0
    assert "torch" in done.stderr or "transformers" in done.stderr
