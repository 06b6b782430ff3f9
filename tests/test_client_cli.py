"""The command line as a shell sees it: output, stderr, exit code; and what the package may import."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from misbehaving_server import BROKEN, EXPIRED, INVALID, QUEUE_FULL, Malformed, MisbehavingServer
from refused_ports import refused_address
from tritonrank_client import NO_TEXT_SCORE
from tritonrank_client.cli import app
from typer.testing import CliRunner

LINES = ['"Alien"', "", '"Solaris [1972]"', '"Up"']


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def run(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_rank_prints_a_table(server: MisbehavingServer, items: Path) -> None:
    code, out, err = run(
        "rank",
        "--url",
        server.urls["grpc"],
        "--items",
        items,
        "--query",
        "space",
        "--history",
        "Dune",
        "--history",
        "E.T.",
    )
    assert (code, err) == (0, "")
    assert out.index("Solaris [1972]") < out.index("Alien") < out.index("Up")
    assert "14.0000" in out
    assert "fake-1" in out
    (asked,) = server.asked
    assert asked.inputs["query"] == [b"space"]
    assert asked.inputs["history"] == [b"Dune", b"E.T."]


def test_rank_prints_one_line_of_json(server: MisbehavingServer, items: Path) -> None:
    code, out, err = run("rank", "--url", server.urls["http"], "--items", items, "--top-k", "2", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert [(place["index"], place["score"], place["item"]) for place in result["ranking"]] == [
        (1, 14.0, "Solaris [1972]"),
        (0, 5.0, "Alien"),
    ]
    assert (result["artifact"], result["attempts"]) == ("fake-1", 1)


def test_objects_from_standard_input_bring_their_ids(server: MisbehavingServer) -> None:
    lines = '{"item_id": 7, "title": "A"}\n{"item_id": "8", "title": "BB"}\n'
    code, out, _ = run("rank", "--url", server.urls["grpc"], "--items", "-", "--json", stdin=lines)
    assert code == 0
    assert [place["item_id"] for place in json.loads(out)["ranking"]] == ["8", "7"]
    assert server.asked[0].inputs["item_ids"] == [b"7", b"8"]


def test_plain_text_lines_are_items(server: MisbehavingServer) -> None:
    lines = '  Oak lamp \n\n17\n[4 pieces]\n"Weird Al" Yankovic\n"a JSON string"\ntrue\n'
    code, _, err = run("rank", "--url", server.urls["grpc"], "--items", "-", "--json", stdin=lines)
    assert (code, err) == (0, "")
    expected = [b"Oak lamp", b"17", b"[4 pieces]", b'"Weird Al" Yankovic', b"a JSON string", b"true"]
    assert server.asked[0].inputs["items"] == expected


def test_an_item_without_text_is_marked_in_the_table(server: MisbehavingServer) -> None:
    scores = [2.5, NO_TEXT_SCORE]
    server.behave(Malformed(lambda outputs: outputs | {"scores": ("FP32", scores)}))
    code, out, _ = run("rank", "--url", server.urls["http"], "--items", "-", stdin='"lamp"\n{"title": ""}\n')
    assert code == 0
    assert "no text" in out
    assert "e+38" not in out


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    started = time.monotonic()
    code, _, err = run("rank", "--url", f"http://{refused_address()}", "--items", "-", stdin="lamp\n")
    assert code == 3
    assert "no connection" in err
    assert time.monotonic() - started < 4


def test_no_lines_make_an_empty_ranking(server: MisbehavingServer) -> None:
    code, out, _ = run("rank", "--url", server.urls["grpc"], "--items", "-", "--json", stdin="\n")
    assert code == 0
    assert (json.loads(out)["ranking"], server.asked) == ([], [])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('"a"\n\n{"title": oak}\n', "line 3: expected a JSON object"),
        ('{"item_id": null}\n', 'line 1: "item_id": expected a text or a whole number, got null'),
        ('{"item_id": true}\n', 'line 1: "item_id": expected a text or a whole number, got true'),
        ('{"item_id": "1"}\n"b"\n', 'line 2: no "item_id" here and one on the lines before'),
        ('"b"\n{"item_id": "1"}\n', 'line 2: an "item_id" here and none on the lines before'),
    ],
)
def test_wrong_lines_are_named(server: MisbehavingServer, lines: str, message: str) -> None:
    code, out, err = run("rank", "--url", server.urls["grpc"], "--items", "-", stdin=lines)
    assert (code, out) == (2, "")
    assert message in err
    assert server.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "no/such/file.jsonl"], "cannot read no/such/file.jsonl"),
        (["--items", "-", "--url", "localhost"], "url: expected SCHEME://HOST:PORT"),
        (["--items", "-", "--header", "nothing"], "--header: expected 'Name: value'"),
        (["--items", "-", "--timeout", "0"], "timeout: "),
        (["--items", "-", "--top-k", "-3"], "top_k: "),
        (["--items", "-", "--root-certificates", "no/such.pem"], "TLS.root_certificates: no such file"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str) -> None:
    code, out, err = run("rank", *arguments, stdin='"a"\n')
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("behaviour", "code", "name"),
    [
        (INVALID, 2, "InvalidRequest"),
        (QUEUE_FULL, 3, "Overloaded"),
        (EXPIRED, 4, "DeadlineExceeded"),
        (BROKEN, 1, "ServerFault"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_one_message_and_an_exit_code(
    server: MisbehavingServer, items: Path, behaviour: object, code: int, name: str
) -> None:
    server.script = [behaviour]
    got, out, err = run("rank", "--url", server.urls["grpc"], "--items", items)
    assert (got, out) == (code, "")
    assert err.startswith(f"{name}: {server.urls['grpc']}")
    assert err.count("\n") == 1


def test_health(server: MisbehavingServer) -> None:
    code, out, err = run("health", "--url", server.urls["http"])
    assert (code, out, err) == (0, "live: yes\nready: yes\nmodel rank: yes\n", "")
    server.model_ready = False
    code, out, err = run("health", "--url", server.urls["http"])
    assert (code, out) == (1, "live: yes\nready: yes\nmodel rank: no\n")
    assert "model 'rank' is not ready" in err
    code, out, _ = run("health", "--url", f"grpc://{refused_address()}", "--json")
    assert code == 1
    assert json.loads(out)["live"] is False


def test_info(server: MisbehavingServer) -> None:
    code, out, _ = run("info", "--url", server.urls["grpc"])
    assert code == 0
    assert "rank (ensemble), versions 1, 2" in out
    assert "[-1]" in out
    code, out, _ = run("info", "--url", server.urls["http"], "--json")
    assert code == 0
    assert json.loads(out)["config"]["input"][0]["dims"] == [-1]


def test_help_shows_an_example_and_the_exit_codes() -> None:
    for command in ("rank", "health", "info"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"tritonrank-client {command}" in out
    assert "Exit codes" in run("--help")[1]


def test_a_real_process_reads_stdin_and_exits_with_the_code(server: MisbehavingServer) -> None:
    command = [sys.executable, "-m", "tritonrank_client.cli", "rank", "--items", "-", "--json", "--url"]
    done = subprocess.run([*command, server.urls["grpc"]], input='"Été"\n', capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ranking"][0]["item"] == "Été"
    done = subprocess.run(
        [*command, f"http://{refused_address()}"], input='"a"\n', capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Unavailable: http://127.0.0.1:")
    assert "Traceback" not in done.stderr


def test_the_package_needs_neither_the_pipeline_nor_its_libraries(server: MisbehavingServer) -> None:
    program = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "transformers", "tritonrank", "onnxruntime", "tokenizers", "pydantic"}}:
            raise ImportError(f"the client must not import {{name}}")

sys.meta_path.insert(0, Block())
import tritonrank_client
import tritonrank_client.cli
for url in {list(server.urls.values())!r}:
    with tritonrank_client.RankClient(url) as client:
        assert client.rank(items=["a"]).indices == (0,)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_grpc_users_do_not_pay_for_http() -> None:
    program = """
import sys
import tritonrank_client
tritonrank_client.RankClient("grpc://127.0.0.1:1").close()
loaded = {"gevent", "aiohttp", "typer", "rich"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
