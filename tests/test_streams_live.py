"""Two gateways at one Valkey as they run in a shop: one is killed, other systems write, a replay gives the same."""

import asyncio
import json
import threading
import time
from pathlib import Path

import httpx
import pytest
import redis
from gateways import RunningGateway, running_gateway
from stream_events import POISON, dump_of, rebuilt, sent_events
from tritonrank import cli
from valkeys import Valkey, running

NOBODY = "127.0.0.1:1"
STREAM = "tr:{stream}:events"


def post_all(gateway: RunningGateway, bodies: list[bytes], counted: dict[str, int]) -> None:
    """Batches of ten, until the gateway is gone."""
    with httpx.Client(base_url=gateway.url, timeout=20) as http:
        while bodies:
            batch = [json.loads(body) for body in bodies[:10]]
            try:
                answer = http.post("/v1/events", json={"events": batch})
            except httpx.HTTPError:
                return
            assert answer.status_code == 200, answer.text
            counted["accepted"] = counted.get("accepted", 0) + answer.json()["accepted"]
            del bodies[:10]


def metric(gateway: RunningGateway, name: str) -> float:
    page = httpx.get(f"{gateway.metrics_url}/metrics").text
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"{name} "))


def clicks_of(gateway: RunningGateway, user: str) -> int:
    answer = httpx.get(f"{gateway.url}/v1/users/{user}")
    return int(answer.json()["counters"].get("click", 0))


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert not raised.value.code


def settled(server: Valkey) -> None:
    with server.client() as client:
        end = time.monotonic() + 30
        while True:
            (group,) = client.xinfo_groups(STREAM)
            if not group["pending"] and not group["lag"]:
                return
            assert time.monotonic() < end, group
            time.sleep(0.1)


def test_gateways_share_the_work_and_a_replay_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies, log = sent_events(5, 600), tmp_path / "events"
    by_post, by_stream = bodies[:400], bodies[400:]
    with running(tmp_path) as server:
        flags = ("--store", server.url, "--events-log", str(log), "--no-access-log")
        with (
            running_gateway(NOBODY, tmp_path / "two", *flags) as two,  # it writes the log
            running_gateway(NOBODY, tmp_path / "one", *flags) as one,
        ):
            left, counted = list(by_post), {"accepted": 0}
            sender = threading.Thread(target=post_all, args=(one, left, counted))
            sender.start()
            with server.client() as client:
                for number, body in enumerate([*by_stream, *POISON]):
                    client.xadd(STREAM, {"event": body})
                    if number == 60:
                        one.process.kill()
                client.xadd(STREAM, {"other": "field"})
                sender.join(30)
                post_all(two, left, counted)  # the batch without an answer is sent again, under the same ids
                assert not left

                client.xadd(STREAM, {"event": json.dumps({"type": "click", "user_id": "fresh", "item_id": "i1"})})
                end = time.monotonic() + 10  # a second on an idle machine: python -m loadtests freshness
                while not clicks_of(two, "fresh"):
                    assert time.monotonic() < end
                    time.sleep(0.02)
            settled(server)
            time.sleep(1.2)  # the gauges are of the last look
            assert metric(two, "tritonrank_gateway_events_stream_lag_messages") == 0
            assert metric(two, "tritonrank_gateway_events_stream_lag_seconds") == 0
            assert metric(two, "tritonrank_gateway_events_stream_messages_total") > 0
            assert metric(two, "tritonrank_gateway_events_stream_length") > 200
        live = dump_of(server.url)
        assert live == rebuilt(server.url, tmp_path)
        letters = [json.loads(line) for line in (log / "dead-letters.jsonl").read_text().splitlines() if line]
        assert {letter["body"] for letter in letters} >= {body.decode("utf-8", "backslashreplace") for body in POISON}
        assert any("no field `event`" in letter["body"] for letter in letters)

        # From the stream, and from the log, by the command; into SQLite though it was Valkey.
        for place, source in enumerate((server.url, log)):
            fresh, file = f"sqlite:{tmp_path / f'fresh{place}.db'}", tmp_path / f"dump{place}"
            run_cli(monkeypatch, "replay-events", source, "--store", fresh)
            run_cli(monkeypatch, "dump-store", "--store", fresh, "--to", file)
            assert file.read_bytes() == live, source
        told = capsys.readouterr().out
        assert "601 events replayed" in told
        assert "6 messages that nobody can take" in told


def test_a_replay_needs_a_fresh_store_and_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tritonrank_recommend.streams.local import LocalStream

    async def fill() -> str:
        stream = LocalStream(tmp_path / "stream.db")
        offsets = (await stream.append(sent_events(6, 50), kept=False)).offsets
        await stream.close()
        return offsets[30]

    middle = asyncio.run(fill())
    source, store = f"local:{tmp_path / 'stream.db'}", f"sqlite:{tmp_path / 'fresh.db'}"
    run_cli(monkeypatch, "replay-events", source, "--store", store, "--from", middle)
    assert dump_of(store) == rebuilt(source, tmp_path, start=middle) != rebuilt(source, tmp_path, seed=1)
    for wrong, said in (
        ((source, "--store", store), "--go-on"),
        ((str(tmp_path / "nothing"), "--store", f"sqlite:{tmp_path / 'x.db'}"), "is no stream"),
        ((str(tmp_path), "--store", f"sqlite:{tmp_path / 'x.db'}", "--from", "3"), "has no offsets"),
    ):
        monkeypatch.setattr("sys.argv", ["tritonrank", "replay-events", *wrong])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert raised.value.code
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.db").exists()
    run_cli(monkeypatch, "replay-events", source, "--store", store, "--go-on")
    assert dump_of(store) == rebuilt(source, tmp_path, seed=2)


@pytest.mark.slow
def test_the_server_is_away_while_events_are_posted(tmp_path: Path) -> None:
    """Refused with 503 while nothing can be kept, and taken again by itself."""
    click = {"type": "click", "user_id": "ann", "item_id": "i1", "event_id": "e1"}
    with (
        running(tmp_path, loses_nothing=True) as server,
        running_gateway(NOBODY, tmp_path / "gateway", "--store", server.url, "--no-access-log") as gateway,
    ):
        post = f"{gateway.url}/v1/events"
        assert httpx.post(post, json=click, timeout=20).json() == {"accepted": 1, "duplicates": 0}
        server.kill()
        assert httpx.post(post, json=click | {"event_id": "e2"}, timeout=20).status_code == 503
        server.start()
        end = time.monotonic() + 20
        while httpx.post(post, json=click | {"event_id": "e2"}, timeout=20).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        with server.client() as client:
            client.xadd(STREAM, {"event": json.dumps(click | {"event_id": "e3"})})
        while clicks_of(gateway, "ann") != 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        with server.client() as client, pytest.raises(redis.ResponseError):
            client.xgroup_create(STREAM, "profiles")  # it is there
