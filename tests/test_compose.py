"""What deploy/compose.yaml starts exists, can change nothing, and listens on this machine alone; so says README."""

import re
import shlex
from typing import Any

import pytest
import typer
from image_files import COMPOSE, ROOT, SERVERS, instructions, of
from tritonrank import cli
from tritonrank.serve.server import STOP_MARGIN_SECONDS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_compose_builds_stages_that_exist_with_arguments_that_exist() -> None:
    arguments = {one.text.split("=")[0] for one in instructions() if one.name == "ARG"}
    stages = {one.stage for one in instructions()}
    for service in COMPOSE["services"].values():
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        assert service["build"]["target"] in stages
        assert set(service["build"].get("args", ())) <= arguments


@pytest.mark.parametrize("service", COMPOSE["services"].values(), ids=COMPOSE["services"].keys())
def test_composed_containers_can_change_nothing(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert "privileged" not in service
    assert all(volume["read_only"] and not volume["bind"]["create_host_path"] for volume in service["volumes"])


@pytest.mark.parametrize("service", SERVERS.values(), ids=SERVERS.keys())
def test_composed_servers_are_published_on_loopback_only(service: dict[str, Any]) -> None:
    published = [port.split(":") for port in service["ports"]]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert {inside for _, _, inside in published} == set(of("server", "EXPOSE")[0].split())
    assert float(service["stop_grace_period"].removesuffix("s")) > 10 + STOP_MARGIN_SECONDS
    assert service["tmpfs"][0].startswith("/tmp:")
    assert "shm_size" in service


def test_profiles_choose_the_server_and_only_one_has_a_gpu() -> None:
    assert {name: service["profiles"] for name, service in SERVERS.items()} == {
        "server-cpu": ["cpu"],
        "server-gpu": ["gpu"],
    }
    reserved = {name: "reservations" in service["deploy"]["resources"] for name, service in SERVERS.items()}
    assert reserved == {"server-cpu": False, "server-gpu": True}
    client = COMPOSE["services"]["client"]
    assert client["depends_on"].keys() == SERVERS.keys()
    assert all(one == {"condition": "service_healthy", "required": False} for one in client["depends_on"].values())
    (alias,) = SERVERS["server-gpu"]["networks"]["default"]["aliases"]
    assert client["environment"]["TRITONRANK_URL"] == f"grpc://{alias}:8001"


def gpu_section() -> list[str]:
    section = README[README.index("\n## On a GPU") :]
    (block, *_) = re.findall(r"^```\n(.*?)^```", section, re.M | re.S)
    return [line.split(" #")[0].strip() for line in block.splitlines()]


def test_on_a_gpu_is_ten_lines_of_things_that_exist() -> None:
    lines = gpu_section()
    assert len(lines) <= 10
    stages = {one.stage for one in instructions()}
    for line in lines:
        for target in re.findall(r"docker build .*--target (\S+)", line):
            assert target in stages
        for profile in re.findall(r"--profile (\S+)", line):
            assert [profile] in [service["profiles"] for service in SERVERS.values()]
        for verb, rest in re.findall(r"^on_gpu tritonrank (\S+) (.*)", line):
            command = typer.main.get_command(cli.app).commands[verb]
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in shlex.split(rest) if word.startswith("--")} <= options
    assert any(line.startswith("docker build") for line in lines)
    assert any("compile" in line for line in lines)
