"""The Dockerfile and the compose file, read."""

import json
import re
from dataclasses import dataclass

import yaml
from conftest import TESTS

ROOT = TESTS.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SERVERS = {name: service for name, service in COMPOSE["services"].items() if name.startswith("server-")}


@dataclass(frozen=True)
class Instruction:
    stage: str
    name: str
    text: str


def instructions() -> list[Instruction]:
    """The Dockerfile's, each with the stage it belongs to; continued lines are joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, text = line.split(maxsplit=1)
        if name == "FROM":
            stage = text.split(" AS ")[1] if " AS " in text else "default"
        found.append(Instruction(stage, name, text))
    return found


def of(stage: str, name: str) -> list[str]:
    return [one.text for one in instructions() if (one.stage, one.name) == (stage, name)]


def command_of(stage: str, name: str) -> list[str]:
    """A CMD, or the command of a HEALTHCHECK, in its JSON form."""
    (text,) = of(stage, name)
    return list(json.loads(text[text.index("[") :]))
