"""Settings by flag and environment, keys, TLS, and the page that describes the routes."""

import hashlib
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from gateways import running_gateway
from misbehaving_server import MisbehavingServer
from tritonrank_gateway.app import create_app
from tritonrank_gateway.backend import TritonBackend
from tritonrank_gateway.keys import Key, Keys, read_keys
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.settings import GatewaySettings, read_settings

KEY = "a-key-of-sixteen-characters"


def test_a_flag_counts_more_than_the_environment_and_that_more_than_the_default() -> None:
    environment = {
        "TRITONRANK_GATEWAY_PORT": "9001",
        "TRITONRANK_GATEWAY_MODEL": "other",
        "TRITONRANK_GATEWAY_ACCESS_LOG": "no",
    }
    settings = read_settings(["--port", "9002", "--triton", "a:1,b:2", "--cors", "https://x", "https://y"], environment)
    assert (settings.port, settings.model, settings.metrics_port) == (9002, "other", 8081)
    assert (settings.triton, settings.cors, settings.access_log) == (("a:1", "b:2"), ("https://x", "https://y"), False)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "x"], "--port"),
        (["--port", "70000"], "--port"),
        (["--triton", "nowhere"], "--triton"),
        (["--deadline-s", "0"], "--deadline-s"),
        (["--keys-file", "/no/such/file"], "--keys-file"),
        (["--tls-key", __file__], "--tls-key"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(arguments, {})
    assert named in capsys.readouterr().err


def test_a_wrong_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings([], {"TRITONRANK_GATEWAY_MAX_DOCUMENTS": "many"})
    assert "--max-documents" in capsys.readouterr().err


def keys(text: str, folder: Path) -> Keys:
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf-8")
    return read_keys(path, {})


def test_keys_are_known_by_any_of_their_headers(tmp_path: Path) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    known = keys(f'[keys.shop]\nsha256 = "{digest}"\n[keys.other]\nkey = "another-key-of-length"\n', tmp_path)
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"api-key": KEY}, {"authorization": KEY}):
        key = known.of(headers)
        assert key is not None
        assert key.name == "shop"
        assert KEY not in repr(key)
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": f"Bearer {KEY}x"}, {"x-api-key": "é"}):
        with pytest.raises(Refusal) as refused:
            known.of(headers)
        assert refused.value.kind == "unauthorized"
        assert KEY not in str(refused.value)
    assert read_keys(None, {}).of({}) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keys = 5", "keys"),
        ('[keys.a]\nkey = "short"', "'a'"),
        ('[keys.a]\nsha256 = "abc"', "keys.a.sha256"),
        ('[keys.a]\nkey = "a-key-of-sixteen-ch"\nrate = 5', "keys.a"),
        ('[keys.a]\nkey = "a-key-of-sixteen-ch"\nrequests_per_second = 0', "keys.a.requests_per_second"),
        ("[keys.a", "TOML"),
    ],
)
def test_a_wrong_key_is_named_and_not_shown(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        keys(text, tmp_path)
    assert "a-key-of-sixteen" not in str(error.value)


def test_rate_and_quota_of_a_key() -> None:
    key = Key("shop", b"", requests_per_second=2, candidates_per_day=100)
    key.take_request(10.0)
    key.take_request(10.0)
    with pytest.raises(Refusal) as refused:
        key.take_request(10.1)
    assert (refused.value.kind, refused.value.retry_after) == ("rate_limited", 1)
    key.take_request(10.6)
    day = 86_400 * 20_000.0
    key.take_candidates(60, day + 80_000)
    with pytest.raises(Refusal) as refused:
        key.take_candidates(50, day + 80_000)
    assert refused.value.retry_after == 6_400
    key.take_candidates(40, day + 80_000)
    key.take_candidates(100, day + 86_401)


def test_a_gateway_with_keys_and_tls(tmp_path: Path) -> None:
    certificate, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    command += [
        "-keyout",
        str(private),
        "-out",
        str(certificate),
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "keys.toml").write_text(f'[keys.shop]\nkey = "{KEY}"\nrequests_per_second = 3\n')
    triton = MisbehavingServer()
    flags = (
        "--tls-certificate",
        str(certificate),
        "--tls-key",
        str(private),
        "--keys-file",
        str(tmp_path / "keys.toml"),
    )
    try:
        with running_gateway(triton.urls["grpc"], tmp_path / "run", *flags) as gateway:
            assert gateway.url.startswith("https://")
            context = ssl.create_default_context(cafile=str(certificate))
            with httpx.Client(base_url=gateway.url, verify=context, timeout=10) as http:
                body = {"query": "q", "documents": ["a", "bb"]}
                for path, told in (("/v1/rerank", "detail"), ("/v2/rerank", "message")):
                    refused = http.post(path, json=body)
                    assert refused.status_code == 401
                    assert "key" in refused.json()[told]
                    assert refused.headers["www-authenticate"] == "Bearer"
                assert http.get("/v1/models").status_code == 401
                assert not triton.asked
                headers = {"Authorization": f"Bearer {KEY}"}
                answers = [http.post("/v1/rerank", json=body, headers=headers) for _ in range(12)]
                assert answers[0].status_code == 200
                limited = [answer for answer in answers if answer.status_code == 429]
                assert limited
                assert limited[0].headers["retry-after"] == "1"
                assert http.get("/health").status_code == 200
            deadline = time.monotonic() + 5
            while '"key": "shop"' not in gateway.log:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert KEY not in gateway.log
    finally:
        triton.close()


def test_every_route_is_described_with_an_example_that_works() -> None:
    triton = MisbehavingServer()
    app = create_app(GatewaySettings(access_log=False), TritonBackend(triton.urls["grpc"]))
    described = app.openapi()
    paths = {
        "/v1/rank", "/rerank", "/v1/rerank", "/v2/rerank", "/predict", "/info", "/health", "/score", "/v1/score",
        "/v1/ranking", "/v1/models",
    }  # fmt: skip
    assert paths <= set(described["paths"])
    names = set(re.findall(r'"#/components/schemas/(\w+)"', app_text := str(described).replace("'", '"')))
    assert names <= set(described["components"]["schemas"]), app_text[:200]

    async def send() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            for path, methods in described["paths"].items():
                for route in methods.values():
                    if "recommend" in route.get("tags", ()):
                        continue  # needs a catalogue: tests/test_recommend_routes.py
                    examples = (
                        route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
                    )
                    for example in examples.values():
                        answer = await http.post(path.replace("{model}", "any"), json=example["value"])
                        assert answer.status_code == 200, (path, answer.text)
            assert (await http.get("/")).headers["location"] == "/playground/"
            page = await http.get("/docs")
            assert page.status_code == 200
            assert not re.findall(r'(?:src|href)="(?:https?:)?//', page.text), "the page needs nothing from elsewhere"

    import asyncio

    try:
        asyncio.run(send())
    finally:
        triton.close()


def test_the_gateway_needs_no_build_tools() -> None:
    blocked = {"torch", "transformers", "onnx", "onnxruntime", "polars", "tritonrank", "tritonrank_runtime"}
    code = f"""
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not the gateway's")

sys.meta_path.insert(0, Refuse())
import tritonrank_gateway.__main__
from tritonrank_gateway.app import create_app
from tritonrank_gateway.compose import compose
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.settings import GatewaySettings

settings = GatewaySettings(triton=("127.0.0.1:1", "127.0.0.1:2"), cache_mb=1)
create_app(settings, compose(settings, Metrics())).openapi()
assert not {blocked!r} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
