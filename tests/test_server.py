"""A real tritonserver with toy models: one echoes, one fails to load, one loads slowly, one dies on request.

Every test that starts a server also looks for what it left behind: processes (found by an environment variable that
the server and its stubs inherit), shared memory, temporary folders and ports.
"""

import dataclasses
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonrank.errors import ServerError
from tritonrank.serve import server as server_module
from tritonrank.serve import triton_wheel
from tritonrank.serve.running import run_until_signalled
from tritonrank.serve.server import LocalTriton

from loadtests import tools

ROOT = Path(__file__).parents[1]
MARKER = "TRITONRANK_TEST_MARKER"
RUN_FOLDER_PREFIX = f"tritonrank-test-{os.getpid()}-"

MODELS = {
    "echo": """
        import numpy, os, sys
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def initialize(self, args):
                assert sys.prefix == os.environ["TRITONRANK_PREFIX"], sys.prefix

            def execute(self, requests):
                texts = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy() for request in requests]
                return [pb_utils.InferenceResponse([pb_utils.Tensor("echo", text)]) for text in texts]
    """,
    "broken": """
        class TritonPythonModel:
            def initialize(self, args):
                raise RuntimeError("the vocabulary is missing on purpose")
    """,
    "slow": """
        import time

        class TritonPythonModel:
            def initialize(self, args):
                time.sleep(60)
    """,
    "crashing": """
        import os, signal, sys
        from pathlib import Path

        class TritonPythonModel:
            def initialize(self, args):
                starts = Path(os.environ["STARTS"])
                starts.write_text(starts.read_text() + "start\\n")
                if len(starts.read_text().split()) < int(os.environ["CRASHES"]) + 1:
                    print("terminate called after throwing", os.environ["THROWN"], file=sys.stderr, flush=True)
                    os.kill(os.getppid(), signal.SIGKILL)

            def execute(self, requests):
                return [None for _ in requests]
    """,
}
CONFIG = """
    backend: "python"
    max_batch_size: 0
    input [ { name: "text" data_type: TYPE_STRING dims: [ -1 ] } ]
    output [ { name: "echo" data_type: TYPE_STRING dims: [ -1 ] } ]
    instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@pytest.fixture(autouse=True, scope="module")
def recognisable_servers() -> Iterator[None]:
    """Tell the servers of these tests from all others on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARKER, str(os.getpid()))
        patch.setattr(server_module, "RUN_FOLDER_PREFIX", RUN_FOLDER_PREFIX)
        yield


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("echo"), "echo")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[LocalTriton]:
    """One server for the tests that only talk to it."""
    with LocalTriton(repository) as running:
        yield running


@pytest.fixture
def leaves_nothing_behind() -> Iterator[None]:
    before = leftovers()
    yield
    wait_until(lambda: leftovers() <= before, 15, lambda: f"left behind: {leftovers() - before}")


# What a running server does


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("texts", [["star wars", "", "naïve 電影", "x" * 100_000], []])
def test_strings_come_back_unchanged(server: LocalTriton, protocol: str, texts: list[str]) -> None:
    client_module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    address = {"http": server.http_url, "grpc": server.grpc_url}[protocol].split("://")[1]
    tensor = client_module.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=np.object_))
    with client_module.InferenceServerClient(address) as client:
        echoed = client.infer("echo", [tensor]).as_numpy("echo")
    assert echoed.shape == (len(texts),)
    assert [text.decode() for text in echoed] == texts


def test_ready_means_that_all_three_ports_answer(server: LocalTriton) -> None:
    assert len({server.http_url, server.grpc_url, server.metrics_url.removesuffix("/metrics")}) == 3
    with urllib.request.urlopen(server.metrics_url) as page:
        assert b'nv_inference_request_success{model="echo"' in page.read()
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        assert client.is_model_ready("echo")
    server.check()


def test_only_the_loopback_address_listens(server: LocalTriton) -> None:
    listening = [entry.laddr.ip for entry in psutil.Process(server.pid).net_connections() if entry.status == "LISTEN"]
    assert len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_shared_memory_and_model_loading_are_closed(server: LocalTriton) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="expecting header"):
            client.register_system_shared_memory("region", "/" + "x", 64)
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="expecting header"):
            client.load_model("echo")


def test_the_repository_stays_as_it_was(server: LocalTriton, repository: Path) -> None:
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.suffix not in {"", ".pyc"}}
    assert files == {"echo/config.pbtxt", "echo/1/model.py"}


def test_perf_analyzer_measures_throughput(server: LocalTriton, perf_analyzer: Path, tmp_path: Path) -> None:
    data = tmp_path / "input.json"
    data.write_text('{"data": [{"text": {"content": ["a", "b"], "shape": [2]}}]}')
    done = subprocess.run(
        [
            *(perf_analyzer, "-m", "echo", "-i", "grpc", "-u", server.grpc_url.removeprefix("grpc://")),
            *("--input-data", data, "--request-count", "50", "--measurement-interval", "500"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    throughput = re.search(r"Concurrency: 1, throughput: ([\d.]+) infer/sec", done.stdout)
    assert throughput, done.stdout
    assert float(throughput[1]) > 1


def test_perf_analyzer_is_installed_once(perf_analyzer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "download", lambda _folder, _wheel: pytest.fail("downloaded again"))
    assert tools.install_perf_analyzer(ROOT / ".tools") == perf_analyzer
    assert "2.51.0" in tools.perf_analyzer_version(perf_analyzer)


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "WHEEL", dataclasses.replace(tools.WHEEL, sha256="0" * 64))

    def pip_download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        destination = next(part for part in command if part.startswith("--dest="))
        Path(destination.removeprefix("--dest="), "tritonclient.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(tools.subprocess, "run", pip_download)
    with pytest.raises(tools.TritonRankError, match="not the file"):
        tools.install_perf_analyzer(tmp_path)
    assert list(tmp_path.iterdir()) == []


# How it ends


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_stop_removes_everything_and_can_be_repeated(repository: Path, tmp_path: Path) -> None:
    log_file = tmp_path / "logs" / "server.log"
    running = LocalTriton(repository, log_file=log_file).start()
    assert len(marked_processes()) >= 3, "the test finds no keeper, server and stub, so it would prove nothing"
    port = int(running.http_url.rpartition(":")[2])
    running.stop()
    running.stop()
    assert not psutil.pid_exists(running.pid) or psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert "successfully loaded 'echo'" in log_file.read_text()
    assert "successfully loaded 'echo'" in running.log_tail()
    with pytest.raises(ServerError, match="ended"):
        running.check()


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_killed_server_is_noticed(repository: Path) -> None:
    with LocalTriton(repository) as running:
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait(timeout_seconds=10) == 128 + signal.SIGKILL
        with pytest.raises(ServerError, match=r"exit code 137(.|\n)*successfully loaded 'echo'"):
            run_until_signalled(running)


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_serving_in_order(repository: Path, number: signal.Signals) -> None:
    with serving_program(repository) as program:
        program.send_signal(number)
        output, _ = program.communicate(timeout=20)
    assert output.endswith("stopped\n")
    assert program.returncode == 0
    assert marked_processes(os.environ[MARKER] + "-program") == set(), "stopped, but processes were still there"


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_killed_program_takes_its_server_along(repository: Path) -> None:
    with serving_program(repository) as program:
        program.kill()
        program.wait()
    wait_until(lambda: not marked_processes(os.environ[MARKER] + "-program"), 15, lambda: "the server lives on")


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_frozen_server_is_killed_with_its_stubs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_MARGIN_SECONDS", 3.0)
    running = LocalTriton(repository, exit_timeout_seconds=0).start()
    for process in (*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)):
        process.suspend()
    running.stop()
    assert running.wait() == 128 + signal.SIGKILL


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_killed_keeper_takes_the_server_along(repository: Path) -> None:
    running = LocalTriton(repository).start()
    psutil.Process(running.pid).parent().kill()
    wait_until(lambda: running.pid not in marked_processes(), 15, lambda: "the server lives on")
    running.stop()


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_ctrl_c_while_models_load(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(marked_processes()) >= before + 3, 20, lambda: "the stub did not start")
        os.kill(os.getpid(), signal.SIGINT)

    before = len(marked_processes())
    interrupter = threading.Thread(target=interrupt)
    # A shell that runs this suite in the background has it ignore SIGINT, and so Python too.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            LocalTriton(make_repository(tmp_path, "slow")).start()
    finally:
        interrupter.join()
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize("another_server_started", [False, True])
def test_the_folder_of_a_killed_backend_is_removed_where_it_can_only_be_ours(
    tmp_path: Path, another_server_started: bool
) -> None:
    run_folder, ours, older = (tmp_path / name for name in ("run", "python_env_ours", "python_env_older"))
    run_folder.mkdir()
    older.mkdir()
    processes = tmp_path / "processes"
    for number in (11, 12):
        (processes / str(number)).mkdir(parents=True)
    (processes / "11" / "comm").write_text("tritonserver\n")
    another = f"echo tritonserver > {processes}/12/comm; " if another_server_started else f"rm -r {processes}/11; "
    code = f"""
        import os, sys
        from pathlib import Path
        from tritonrank.serve import server_keeper
        folder = Path({str(tmp_path)!r})
        command = ["sh", "-c", "{another}mkdir {ours}; kill -KILL $$"]
        seen = dict(processes=folder / "processes", environments=folder)
        sys.exit(server_keeper.main(os.getppid(), folder / "run", 1, None, command, **seen))
    """
    read_end, write_end = os.pipe()  # stays open: the keeper is not told to stop
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdin=read_end, timeout=20)
    os.close(read_end)
    os.close(write_end)
    assert done.returncode == 128 + signal.SIGKILL
    assert not run_folder.exists()
    assert ours.exists() == another_server_started
    assert older.exists()


# How it does not start


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_model_that_fails_is_named_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ServerError) as caught:
        LocalTriton(make_repository(tmp_path, "broken", "echo")).start()
    message = str(caught.value)
    assert "model broken failed to load: Internal: RuntimeError: the vocabulary is missing on purpose" in message
    assert "NVML" not in message
    assert "CUDA" not in message


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_loading_has_a_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"not ready after 1.5 s \(still loading: slow\)"):
        LocalTriton(make_repository(tmp_path, "slow", "echo"), ready_timeout_seconds=1.5).start()
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize("name", ["http_port", "grpc_port", "metrics_port"])
def test_a_taken_port_is_named_before_anything_starts(
    repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} .*in use.*--{name.replace('_', '-')}"):
            LocalTriton(repository, **{name: port}).start()


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_port_lost_between_choice_and_use_is_chosen_anew(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_ports, choices = server_module.choose_ports, []

    def choose_a_taken_port_first(wanted: dict[str, int], host: str) -> dict[str, int]:
        choices.append(choose_ports(wanted, host) | ({} if choices else {"http_port": other.getsockname()[1]}))
        return choices[-1]

    monkeypatch.setattr(server_module, "choose_ports", choose_a_taken_port_first)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with LocalTriton(repository) as running:
            assert running.http_url.endswith(f":{choices[1]['http_port']}")
    assert len(choices) == 2


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize(
    ("thrown", "crashes", "starts"),
    [("boost::interprocess::lock_exception", 1, 2), ("boost::interprocess::lock_exception", 9, 3), ("bad_alloc", 1, 1)],
    ids=["once", "always", "something else"],
)
def test_a_start_that_meets_tritons_own_lock_is_tried_again(
    tmp_path: Path, thrown: str, crashes: int, starts: int
) -> None:
    counted = tmp_path / "starts"
    counted.touch()
    environment = {"STARTS": str(counted), "CRASHES": str(crashes), "THROWN": thrown}
    crashing = LocalTriton(make_repository(tmp_path / "models", "crashing"), environment=environment)
    if starts == crashes + 1:
        with crashing as running:
            running.check()
    else:
        with pytest.raises(ServerError, match=thrown):
            crashing.start()
    assert len(counted.read_text().split()) == starts


def test_one_port_cannot_serve_twice(repository: Path) -> None:
    port = server_module.choose_ports({"http_port": 0})["http_port"]
    with pytest.raises(ServerError, match=f"port {port} "):
        LocalTriton(repository, http_port=port, grpc_port=port).start()


def test_a_missing_wheel_is_said_with_the_command_to_type(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_wheel, "DISTRIBUTION", "nvidia-pytriton-that-is-not-here")
    with pytest.raises(ServerError, match=re.escape("pip install 'tritonrank[server]'")):
        LocalTriton(repository).start()


@pytest.mark.usefixtures("leaves_nothing_behind")
def test_the_server_that_pip_installs_stays_on_loopback(repository: Path) -> None:
    with pytest.raises(ServerError, match=r"security advisories.*127\.0\.0\.1 only, not on 0\.0\.0\.0.*docker compose"):
        LocalTriton(repository, host="0.0.0.0").start()


def test_a_python_without_stub_is_said_with_the_versions_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = type("version", (tuple,), {"major": 3, "minor": 99})((3, 99))
    monkeypatch.setattr(triton_wheel.sys, "version_info", newer)
    with pytest.raises(ServerError, match=r"cannot run Python 3\.99 models; it supports 3\.8, .*3\.13"):
        triton_wheel.find_triton_wheel()


def test_a_python_without_shared_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_wheel.sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(triton_wheel.sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(triton_wheel.ctypes.util, "find_library", lambda _: None)
    with pytest.raises(ServerError, match=r"libpython3\.\d+\.so\.1\.0 was not found"):
        triton_wheel.server_environment(triton_wheel.find_triton_wheel(), {}, tmp_path)


def test_the_wheel_is_the_one_the_package_asks_for() -> None:
    assert triton_wheel.find_triton_wheel().version == importlib.metadata.version("nvidia-pytriton")
    assert "pytriton" not in sys.modules


# Helpers


def make_repository(folder: Path, *models: str) -> Path:
    for name in models:
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(textwrap.dedent(CONFIG))
        (folder / name / "1" / "model.py").write_text(textwrap.dedent(MODELS[name]))
    return folder


def serving_program(repository: Path) -> subprocess.Popen[str]:
    """A program as ``tritonrank serve`` is one; given back once its server is ready."""
    code = f"""
        import signal, threading, time
        from pathlib import Path
        from tritonrank.serve import server as server_module
        from tritonrank.serve.running import run_until_signalled
        from tritonrank.serve.server import LocalTriton
        server_module.RUN_FOLDER_PREFIX = {RUN_FOLDER_PREFIX!r}
        def tell_once_signals_are_handled():
            while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # it is the last that gets a handler
                time.sleep(0.01)
            print(server.pid, flush=True)
        with LocalTriton(Path({str(repository)!r})) as server:
            threading.Thread(target=tell_once_signals_are_handled).start()
            run_until_signalled(server)
        print("stopped", flush=True)
    """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {MARKER: os.environ[MARKER] + "-program"},
    )
    assert program.stdout is not None
    assert program.stdout.readline().strip().isdigit()
    assert len(marked_processes(os.environ[MARKER] + "-program")) >= 4, "program, keeper, server, stub"
    return program


def marked_processes(marker: str | None = None) -> set[int]:
    """Living processes that inherited the marker from this one, except this one."""
    wanted = f"{MARKER}={marker or os.environ[MARKER]}".encode()
    found = set()
    for process in psutil.process_iter(["status"]):
        try:
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        matches = wanted in variables if marker else any(variable.startswith(wanted) for variable in variables)
        if matches and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def leftovers() -> set[object]:
    """Everything a server might leave: processes, shared memory, temporary folders."""
    folders = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return {*marked_processes(), *(path for folder in folders for path in folder.glob(RUN_FOLDER_PREFIX + "*"))}


def wait_until(condition: Callable[[], bool], timeout_seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)
