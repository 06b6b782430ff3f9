"""tritonrank: from a fine-tuned Transformer ranker to a real-time Triton deployment."""

import os

__version__ = "0.1.0"

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime since 1.29: looks names up, keeps a device id in ~/.cache/Microsoft
    "HF_HUB_DISABLE_TELEMETRY": "1",  # transformers and huggingface_hub, where a checkpoint is a name on the hub
    "DO_NOT_TRACK": "1",  # https://consoledonottrack.com, for what else listens to it
}
"""Environment variables with which the libraries that are used here send nothing about their user."""

# Libraries read them when they are imported, so this comes before every import of one; the user's own choice wins.
for _name, _value in TELEMETRY_OFF.items():
    os.environ.setdefault(_name, _value)
