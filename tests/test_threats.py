"""The threat model names tests, flags and variables that exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from tritonrank_gateway.keys import ADMIN_VARIABLE
from tritonrank_gateway.settings import GatewaySettings, flag_of
from tritonrank_recommend.privacy import FIELDS_VARIABLE, KEY_VARIABLE

ROOT = Path(__file__).parents[1]
PAGES = ("threats.md", "security.md")
OF_SERVE = {"--grpc-tls", "--admin-port", "--keep-days"}
VARIABLES = {ADMIN_VARIABLE, FIELDS_VARIABLE, KEY_VARIABLE, "TRITONRANK_GATEWAY_KEYS"}


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_names_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    missing = [name for name in set(re.findall(r"`(tests/\w+\.py)`", text)) if not (ROOT / name).is_file()]
    assert not missing
    known = {flag_of(one.name) for one in fields(GatewaySettings)} | OF_SERVE
    code = re.findall(r"`([^`\n]+)`", text)
    flags = {flag for part in code for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", part)}
    assert not {flag for flag in flags if flag.startswith(("--tls", "--triton", "--grpc-tls"))} - known
    assert set(re.findall(r"\bTRITONRANK_[A-Z_]+", text)) <= VARIABLES


def test_every_threat_has_a_proof() -> None:
    text = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## Where")[1].split("## What is not")[0].splitlines() if line.startswith("| ")]
    threats = [row for row in rows if not row.startswith("| threat ")]
    assert len(threats) > 25
    assert not [row for row in threats if "`tests/test_" not in row.rsplit("|", 2)[1]]
