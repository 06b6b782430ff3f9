"""The images, as far as they can be proved without Docker.

What the Dockerfile copies exists, what it runs runs in a plain environment here, its pins agree with all others, and
its last command starts the real tritonserver: laid out as in the container, with the container's options.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc
import tritonrank
from image_files import DOCKERFILE, ROOT, SERVERS, command_of, instructions, of
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.recipe import ServeSettings
from tritonrank.serve import triton_wheel
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.triton_config import MOST_TEXT_BYTES
from tritonrank.serve.triton_install import CONTAINER_OPTIONS

from deploy.supply.locks import IMAGES

PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
READY_FILE = "/tmp/tritonrank-ready"
HOST = "127.0.0.2"
"""Stands for 0.0.0.0: not the default, so it shows that --host counts, and yet nobody else's."""
NEEDED_ELSEWHERE = (
    "torch",
    "transformers",
    "onnx",
    "optimum",
    "polars",
    "pyarrow",
    "scipy",
    "onnxruntime",
    "tokenizers",
)


# The files


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "hadolint is missing: make setup"
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True, timeout=60, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")
    worse = hadolint(DOCKERFILE.replace("--no-cache-dir", ""))
    assert worse.returncode == 1
    assert "DL3042" in worse.stdout


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last pattern that matches it or a folder of it decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    places = ["/".join(path.split("/")[: length + 1]) for length in range(path.count("/") + 1)]
    sent = True
    for pattern in patterns:
        bare = pattern.removeprefix("!").removeprefix("**/")
        tried = [place.split("/")[-1] for place in places] if "**/" in pattern else places
        if any(fnmatch(place, bare) and (bare.count("/") == place.count("/")) for place in tried):
            sent = pattern.startswith("!")
    return sent


def copied_from_the_checkout() -> list[str]:
    copied = [word for one in instructions() if one.name == "COPY" for word in shlex.split(one.text)[:-1]]
    copied = [word for word in copied if not word.startswith(("--", "/", "$"))]  # of this checkout
    mounted = re.findall(r"--mount=type=bind,source=([^,]+)", DOCKERFILE)
    return sorted({*copied, *mounted})


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = copied_from_the_checkout()
    assert {"build", "constraints.txt", "deploy/rank_three.py", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        files = [path for path in (ROOT / name).rglob("*") if path.is_file()] or [ROOT / name]
        ignored = [path for path in files if not is_sent(str(path.relative_to(ROOT)))]
        assert [path for path in ignored if "__pycache__" not in path.parts] == [], name


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("artifacts/demo/repository/score/1/model.onnx", True),
        ("artifacts/demo/repository-tensorrt/score/1/model.plan", True),
        ("artifacts/demo/teacher/model.safetensors", False),
        ("build/tritonrank/__pycache__/cli.cpython-312.pyc", False),
        (".git/config", False),
        ("tests/conftest.py", False),
        ("deploy/compose.yaml", False),
    ],
)
def test_only_what_is_named_reaches_the_build(path: str, sent: bool) -> None:
    assert is_sent(path) == sent


def test_tags_and_tensorrt_versions_agree_everywhere() -> None:
    tensorrt = PINS["tensorrt_cu13"]
    assert PINS["tensorrt_cu13_bindings"] == tensorrt
    (tag,) = re.findall(r"^ARG TRITON_TAG=(\S+)$", DOCKERFILE, re.M)
    pages = [ROOT / "Dockerfile", ROOT / "deploy" / "compose.yaml", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages.append(ROOT / "build" / "tritonrank" / "tensorrt" / "plans.py")
    tags, versions = [], []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if page.name != "log.md":  # which tells what was
            tags += re.findall(r"(?:tritonserver:|TRITON_TAG:-|TRITON_TAG=|Triton )(2\d\.\d\d)\b", text)
            versions += re.findall(r"TensorRT (1[1-9]\.\d[\d.]*\d|1[1-9]\.\d)\b", text)
    assert len(tags) > 6
    assert set(tags) == {tag}
    assert versions
    assert all(f"{tensorrt}.".startswith(f"{version}.") for version in versions), versions


def test_images_that_run_are_not_root_and_install_nothing() -> None:
    for stage in ("server", "client", "gateway", "builder"):
        assert of(stage, "USER")[-1] == "1000:1000"
    assert of("server", "RUN") == of("with-model", "RUN") == []
    assert of("server", "COPY") == ["--from=environment /opt/tritonrank /opt/tritonrank"]
    assert [one.stage for one in instructions() if "apt-get" in one.text] == ["gateway"]


# What it runs


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/tritonrank, made by the Dockerfile's own commands, but without what the wheel depends on."""
    root = tmp_path_factory.mktemp("image")
    done = run_environment_stage(wheel, root, "tensorrt")
    assert done.returncode == 0, done.stderr
    assert f"--require-hashes --requirement {ROOT}/deploy/locks/server-gpu.txt" in done.stdout
    return root / "opt" / "tritonrank"


def run_environment_stage(wheel: Path, root: Path, target: str) -> subprocess.CompletedProcess[str]:
    make, lock, install = (re.sub(r"--mount=\S+\s*", "", step) for step in of("environment", "RUN"))
    # What the lock names comes from an index, which is not there: everything but pip itself is run.
    steps = [make, lock.replace("python3 -m pip", "echo python3 -m pip"), install]
    moved = {"/opt/": f"{root}/opt/", "/wheels/": f"{wheel.parent}/", "/locks/": f"{ROOT}/deploy/locks/"}
    script = " && ".join(f"( {step} )" for step in steps)
    for place, here in moved.items():
        script = script.replace(place, here)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "TARGET": target, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "HOME": str(root)}
    return subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=120, env=variables)


def test_the_environment_has_the_wheel_and_no_pip(environment: Path) -> None:
    assert {path.name for path in (environment / "bin").iterdir()} >= {"python3", "tritonrank", "tritonrank-client"}
    assert not [path for path in environment.rglob("pip") if path.is_dir()]
    (site,) = environment.glob("lib/python*/site-packages")
    assert (site / "tritonrank" / "model_repository" / "ranker" / "1" / "model.py").is_file()


def test_the_installed_command_serves_without_the_packages_that_build(environment: Path) -> None:
    """Everything that ``serve`` imports is in the extra `serving`: no engine, no torch, no tables."""
    (site,) = environment.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")  # the packages it depends on
    (site / "sitecustomize.py").write_text(
        f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NEEDED_ELSEWHERE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
""",
        encoding="utf-8",
    )
    try:
        missing = site / "no-such-repository"
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(environment), "COLUMNS": "200"}
        command = [environment / "bin" / "tritonrank", "serve"]
        shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, env=variables)
        assert "--host" in shown.stdout, shown.stderr
        refused = subprocess.run([*command, missing], capture_output=True, text=True, timeout=60, env=variables)
        blocked = subprocess.run([environment / "bin" / "python3", "-c", "import onnx"], env=variables, timeout=60)
    finally:
        (site / "sitecustomize.py").unlink()
    assert blocked.returncode == 1, "nothing was kept away, so this proves nothing"
    assert refused.returncode == ArtifactError.exit_code
    assert f"ArtifactError: {missing}" in refused.stderr.replace("\n", "")


def test_an_unknown_target_is_refused_with_those_there_are(wheel: Path, tmp_path: Path) -> None:
    done = run_environment_stage(wheel, tmp_path, "gpu")
    assert done.returncode == 1
    assert "TARGET=gpu: expected cpu, onnxruntime, tensorrt or tensorrt-tp" in done.stderr


def test_the_locks_it_names_are_those_of_its_stages() -> None:
    named = set(re.findall(r"(?:/locks/|lock=)([a-z-]+)", DOCKERFILE))
    assert named == {image.name for image in IMAGES}
    for text in DOCKERFILE.split("RUN")[1:]:
        assert "--requirement" not in text or "--require-hashes" in text


@pytest.mark.parametrize(("library", "fault"), [(110400, None), (110300, "the image has TensorRT 11.3.0")])
def test_the_builder_refuses_bindings_of_another_tensorrt(library: int, fault: str | None) -> None:
    program, option, code = shlex.split(of("builder", "RUN")[-1])
    stand_ins = f"""
import ctypes, importlib.metadata, types
ctypes.CDLL = lambda name: types.SimpleNamespace(getInferLibVersion=lambda: {library})
importlib.metadata.version = {{"tensorrt-cu13-bindings": {PINS["tensorrt_cu13_bindings"]!r}}}.__getitem__
"""
    command = [sys.executable, option, stand_ins + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert program == "python3"
    assert done.returncode == (1 if fault else 0), done.stderr
    assert (fault or "") in done.stderr


# What it serves


@dataclass(frozen=True)
class Container:
    """``docker run``, without Docker: the image's command, with a tritonserver laid out as in the image."""

    program: subprocess.Popen[str]
    ports: dict[str, int]
    """http, grpc, metrics"""
    log: list[str]
    ready_file: Path

    def address(self, protocol: str) -> str:
        return f"{HOST}:{self.ports[protocol]}"


@pytest.fixture(scope="module")
def container(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    root = tmp_path_factory.mktemp("container")
    program = start_container(workspace.repository, root)
    log: list[str] = []
    try:
        assert program.stdout is not None
        reader = threading.Thread(target=lambda: log.extend(program.stderr or ()), daemon=True)
        reader.start()
        said = [program.stdout.readline() for _ in range(3)]
        found = {word.lower(): re.search(r"127\.0\.0\.2:(\d+)", rest) for word, rest in map(str.split, said)}
        assert all(found.values()), said + log
        ports = {word: int(match[1]) for word, match in found.items() if match}
        yield Container(program, ports, log, root / "ready")
    finally:
        program.kill()
        program.communicate()


def start_container(repository: Path, root: Path) -> subprocess.Popen[str]:
    wheel = triton_wheel.find_triton_wheel()
    (root / "bin").mkdir()
    (root / "bin" / "tritonserver").symlink_to(wheel.executable)
    (root / "caches").symlink_to(wheel.caches)
    triton_wheel.make_backend_folder(wheel, root / "backends")
    # The image's own options are those of a later release.
    code = f"""
from pathlib import Path
from tritonrank import cli
from tritonrank.serve import triton_install
triton_install.CONTAINER_ROOT = Path({str(root)!r})
triton_install.CONTAINER_OPTIONS = ()
cli.main()
"""
    program, *words = command_of("server", "CMD")
    assert program == "tritonrank"
    places = {"/models": str(repository), "0.0.0.0": HOST, READY_FILE: str(root / "ready")}
    assert places.keys() <= set(words)
    words = [places.get(word, word) for word in words]
    words += ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    libraries = triton_wheel.server_environment(wheel, {}, root)["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LD_LIBRARY_PATH": libraries, "PYTHONUNBUFFERED": "1"},
    )


def test_the_images_command_serves_on_the_address_it_names(container: Container) -> None:
    servers = psutil.Process(container.program.pid).children(recursive=True)
    listening = [one for child in servers for one in child.net_connections() if one.status == "LISTEN"]
    assert {one.laddr.port for one in listening} >= set(container.ports.values())
    assert {one.laddr.ip.removeprefix("::ffff:") for one in listening} == {HOST}
    with urllib.request.urlopen(f"http://{container.address('metrics')}/metrics") as page:
        assert b"nv_inference_request_success" in page.read()
    assert any("successfully loaded 'rank'" in line for line in container.log), "the log is not on standard error"


def test_admin_protocols_are_refused(container: Container) -> None:
    with tritonclient.grpc.InferenceServerClient(container.address("grpc")) as client:
        for refused in (
            lambda: client.register_system_shared_memory("region", "/x", 64),
            lambda: client.get_model_repository_index(),
            lambda: client.unload_model("rank"),
            lambda: client.update_log_settings({"log_verbose_level": 1}),
            lambda: client.update_trace_settings("rank", {"trace_level": ["TENSORS"]}),
        ):
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="expecting header"):
                refused()
    for path in ("repository/index", "repository/models/rank/unload", "systemsharedmemory/region/x/register"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{container.address('http')}/v2/{path}", data=b"{}")
        assert caught.value.code == 403


def test_nothing_in_the_images_calls_out() -> None:
    """Nor writes byte code beside what is hashed. The server's own stubs get their variables from the server."""
    stages = [
        text for text in re.split(r"(?m)^(?=FROM )", DOCKERFILE) if re.match(r"FROM \S+ AS (server|client)\b", text)
    ]
    assert len(stages) == 2
    for text in stages:
        found = dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"(?m)^ENV ((?:.*\\\n)*.*)", text))))
        wanted = dict(tritonrank.TELEMETRY_OFF) | {"PYTHONDONTWRITEBYTECODE": "1"}
        if "AS client" in text:
            del wanted["ORT_DISABLE_TELEMETRY"]  # no ONNX Runtime in there
        assert wanted.items() <= found.items()


def test_a_server_that_is_killed_comes_back_however_often() -> None:
    assert {service["restart"] for service in SERVERS.values()} == {"unless-stopped"}


def test_the_health_check_follows_the_server(container: Container) -> None:
    command = command_of("server", "HEALTHCHECK")
    places = {"127.0.0.1": HOST, "8000": str(container.ports["http"]), READY_FILE: str(container.ready_file)}
    assert all(any(place in word for word in command) for place in places)

    def health(places: dict[str, str]) -> int:
        words = command
        for place, here in places.items():
            words = [word.replace(place, here) for word in words]
        return subprocess.run([sys.executable, *words[1:]], capture_output=True, timeout=30).returncode

    assert command[0] == "python3"
    assert health(places) == 0
    assert health(places | {"8000": str(container.ports["grpc"])}) == 1
    assert health(places | {"/v2/health/ready": "/v2/models/absent/ready"}) == 1
    assert health(places | {READY_FILE: f"{container.ready_file}-not-yet"}) == 1


def test_the_composed_client_ranks_three_requests(container: Container, workspace: Workspace) -> None:
    command = [sys.executable, ROOT / "deploy" / "rank_three.py", workspace.repository / "golden.json"]
    url = f"grpc://{container.address('grpc')}"
    variables = os.environ | {"TRITONRANK_URL": url}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^Request \d: \d+ candidates in [\d.]+ ms, model \w+$", done.stdout, re.M)) == 3
    for case in json.loads((workspace.repository / "golden.json").read_text())["cases"][:3]:
        best = case["items"][max(range(len(case["items"])), key=case["scores"].__getitem__)]
        assert f"{max(case['scores']):8.4f}  {best}" in done.stdout


def test_docker_stop_ends_it_in_order(container: Container) -> None:
    """The last test that uses it."""
    servers = psutil.Process(container.program.pid).children(recursive=True)
    assert len(servers) >= 3  # keeper, tritonserver, the ranker's stub
    container.program.send_signal(signal.SIGTERM)
    grace = SERVERS["server-cpu"]["stop_grace_period"].removesuffix("s")
    assert container.program.wait(timeout=float(grace)) == 0
    assert not container.ready_file.exists()
    assert not any(server.is_running() for server in servers)


def test_docker_stop_while_models_load_ends_it_too(workspace: Workspace, tmp_path: Path) -> None:
    """Nor was it ever ready, though another one left its file."""
    (tmp_path / "ready").touch()
    program = start_container(workspace.repository, tmp_path)
    assert program.stderr is not None
    assert any("loading:" in line for line in iter(program.stderr.readline, ""))
    assert not (tmp_path / "ready").exists()
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=40)
    assert program.returncode == 128 + signal.SIGTERM


def test_what_a_container_takes_over_http_holds_the_largest_request_of_a_recipe() -> None:
    (limit,) = (option.partition("=")[2] for option in CONTAINER_OPTIONS if option.startswith("--http-max-input-size="))
    assert ServeSettings().max_candidates * (MOST_TEXT_BYTES + 4) <= int(limit), "each text goes behind its length"


def test_every_address_is_reached_on_loopback() -> None:
    assert LocalTriton(ROOT, host="0.0.0.0").reached_at == "127.0.0.1"
    assert LocalTriton(ROOT, host="10.0.0.7").reached_at == "10.0.0.7"
