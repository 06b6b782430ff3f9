# syntax=docker/dockerfile:1
#
# Images around one Triton release. Plans are built and served by the same TensorRT, because `builder` is `server` with
# more Python packages on top. See docs/container.md.
#
#   docker build --target server --build-arg TARGET=tensorrt --tag tritonrank-server .     serves a repository
#   docker build --target builder --tag tritonrank-builder .                               builds one, plans included
#   docker build --target with-model --build-arg REPOSITORY=artifacts/demo/repository .    server and model in one image
#   docker build --target gateway --tag tritonrank-gateway .                               the gateway, no Triton
#   docker build --target client --tag tritonrank-client .                                 the thin client, no Triton
#
# What Python installs into an image is named by version and hash in deploy/locks (`make locks`), PyTorch alone excepted;
# deploy/sbom has it as a bill of materials, which lies in the image, too. See docs/security.md.

# Bases are named by tag: their digests stand in registries, and no digest is written here that was not looked up there.
# Whoever needs the very same base appends @sha256:... to the two FROM lines.
#
# 26.11: Triton 2.75, TensorRT 11.4.0, Python 3.12. Another tag may bring another TensorRT: then change its pin in
# constraints.txt too (the builder's last step compares both), and build the plans again.
ARG TRITON_TAG=26.11
ARG PYTHON_TAG=3.12-slim-bookworm


FROM python:${PYTHON_TAG} AS wheel
WORKDIR /source
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir --constraint constraints.txt build hatchling
COPY pyproject.toml README.md LICENSE ./
COPY build build
COPY clients clients
COPY gateway gateway
COPY model_repository model_repository
COPY deploy/sbom/tritonrank.cdx.json deploy/sbom/tritonrank.cdx.json
RUN python -m build --wheel --no-isolation --outdir /wheels


FROM python:${PYTHON_TAG} AS client
RUN --mount=type=bind,source=deploy/locks,target=/locks \
    python -m pip install --no-cache-dir --only-binary :all: --require-hashes --requirement /locks/client.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-deps /wheels/*.whl
COPY deploy/sbom/client.cdx.json /usr/share/tritonrank/sbom.cdx.json
COPY deploy/rank_three.py /opt/rank_three.py
ENV PYTHONDONTWRITEBYTECODE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
USER 1000:1000
CMD ["python", "/opt/rank_three.py", "/models/golden.json"]


# The gateway: rerank dialects, recommendations, versions; and `tritonrank pull`, `rollout run` for what stands around it.
FROM python:${PYTHON_TAG} AS gateway
# LightGBM, which reads the blend, is linked with the system's OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1=12.2.* && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=deploy/locks,target=/locks \
    python -m pip install --no-cache-dir --only-binary :all: --require-hashes --requirement /locks/gateway.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-deps /wheels/*.whl
COPY deploy/sbom/gateway.cdx.json /usr/share/tritonrank/sbom.cdx.json
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m --retries=3 \
    CMD ["python", "-I", "-S", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8081, timeout=4); c.request('GET', '/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
USER 1000:1000
# Every address of the container, as for the server below. Settings come as variables TRITONRANK_GATEWAY_*.
CMD ["python", "-m", "tritonrank_gateway", "--host", "0.0.0.0"]


FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3 AS triton


# What is served decides which packages the models' Python code needs. The interpreter is the image's own (Triton's
# Python backend is linked with it); pip installs into the environment from outside, so none is left inside.
FROM triton AS environment
ARG TARGET=cpu
RUN python3 -m venv --without-pip /opt/tritonrank
RUN --mount=type=bind,source=deploy/locks,target=/locks \
    case "${TARGET}" in \
      cpu) lock=server-cpu ;; \
      onnxruntime | tensorrt | tensorrt-tp) lock=server-gpu ;; \
      *) echo >&2 "TARGET=${TARGET}: expected cpu, onnxruntime, tensorrt or tensorrt-tp"; exit 1 ;; \
    esac \
    && python3 -m pip --python /opt/tritonrank/bin/python3 install --no-cache-dir --only-binary :all: \
      --require-hashes --requirement "/locks/${lock}.txt"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/tritonrank/bin/python3 install --no-cache-dir --no-deps /wheels/*.whl
COPY deploy/sbom/server-cpu.cdx.json deploy/sbom/server-gpu.cdx.json /opt/tritonrank/share/


# The server. Nothing is installed or downloaded when it starts, nothing below / has to be writable but /tmp and
# /dev/shm. NVIDIA's entry point stays: it picks CUDA's compatibility libraries where the driver is older.
FROM triton AS server
COPY --from=environment /opt/tritonrank /opt/tritonrank
# Nothing calls out: ONNX Runtime would (tritonrank's own list is TELEMETRY_OFF).
ENV PATH=/opt/tritonrank/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
EXPOSE 8000 8001 8002
# Ready: every model is loaded and warmed up, and the golden requests ranked as in process (then `serve` makes the file).
# /usr/bin/env finds the environment's python3; -I -S starts it in 20 ms.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-I", "-S", "-c", "open('/tmp/tritonrank-ready').close(); from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=4); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
# triton-server, by number, so that Kubernetes can see that it is not root.
USER 1000:1000
# Every address of the container: loopback in here could not be published at all. Who reaches it is decided outside;
# deploy/compose.yaml publishes the ports on the host's loopback only. All other options of Triton are those that
# `tritonrank serve` starts it with everywhere (build/tritonrank/serve/server.py).
CMD ["tritonrank", "serve", "/models", "--host", "0.0.0.0", "--ready-timeout", "600", "--log-file", "-", "--ready-file", "/tmp/tritonrank-ready"]


# A model for those who deploy images and not folders. Otherwise mount the repository at /models, read-only: then an
# image outlives many models, and a GPU's plans stay on the machine with that GPU.
FROM server AS with-model
ARG REPOSITORY=artifacts/demo/repository
COPY ${REPOSITORY} /models


# Everything before serving, for one-shot commands on the machine whose GPU will serve:
#   docker run --rm --gpus all -v $PWD:/work tritonrank-builder tritonrank compile RECIPE
# TensorRT's Python bindings come without libraries of their own: they load the image's, the very ones that serve.
FROM server AS builder
# PyPI's PyTorch brings CUDA, for training and for gpu-check; https://download.pytorch.org/whl/cpu is GBs smaller, and
# enough to compile plans. Its files differ by index, so it and the CUDA libraries that it asks for are not in the lock.
ARG TORCH_INDEX=https://pypi.org/simple
USER 0:0
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    --mount=type=bind,source=deploy/locks,target=/locks \
    pip="/usr/bin/python3 -m pip --python /opt/tritonrank/bin/python3 install --no-cache-dir" \
    && ${pip} --constraint /constraints.txt --no-deps --index-url "${TORCH_INDEX}" torch \
    && ${pip} --require-hashes --no-deps --requirement /locks/builder.txt \
    && ${pip} --constraint /constraints.txt torch \
    && ${pip} --no-deps /wheels/*.whl \
    && ${pip} --constraint /constraints.txt --no-deps tensorrt-cu13 tensorrt-cu13-bindings
COPY deploy/sbom/builder.cdx.json /opt/tritonrank/share/
# The bindings are pinned in constraints.txt, the library comes with the tag: they have to be of one version.
RUN python3 -c "import ctypes, importlib.metadata as m; n = ctypes.CDLL('libnvinfer.so.11').getInferLibVersion(); \
here = f'{n // 10_000}.{n // 100 % 100}.{n % 100}'; pinned = m.version('tensorrt-cu13-bindings'); \
exit(None if pinned.startswith(here + '.') else f'the image has TensorRT {here}, constraints.txt pins {pinned}')"
USER 1000:1000
# Whoever runs it may be any user (--user), who has no home in here.
ENV HOME=/tmp
WORKDIR /work
HEALTHCHECK NONE
CMD ["tritonrank", "--help"]


# What `docker build .` gives.
FROM server
