"""python -m deploy.supply lock | bill | check | audit: locks with hashes, bills of materials, known vulnerabilities."""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.supply import bills, locks

ROOT = locks.ROOT


def version() -> str:
    """Of tritonrank, as its source says it."""
    (line,) = [
        line
        for line in (ROOT / "build" / "tritonrank" / "__init__.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    ]
    return line.partition("=")[2].strip().strip("\"'")


def lock() -> None:
    """Resolve the locks anew; the package index is asked."""
    locks.FOLDER.mkdir(exist_ok=True)
    _write({locks.path_of(image): locks.resolve(image) for image in locks.IMAGES})
    bill()


def bill() -> None:
    """Write the bills of the locks that are there."""
    bills.FOLDER.mkdir(exist_ok=True)
    _write(bills.bills(version()))


def check() -> str | None:
    """What the bills say otherwise than the locks; None where both agree."""
    # Licenses are told by what is installed here, so whole files are not compared.
    wanted = {path: bills.told_in(text) for path, text in bills.bills(version()).items()}
    wrong = [
        path.name
        for path, told in wanted.items()
        if not path.is_file() or bills.told_in(path.read_text("utf-8")) != told
    ]
    return (
        f"{bills.FOLDER}: {', '.join(wrong)}: not what the locks say; type: python -m deploy.supply bill"
        if wrong
        else None
    )


def audit() -> str | None:
    """Hold every lock against the advisories that pip-audit reaches; None where it knows of nothing."""
    found = []
    for image in locks.IMAGES:
        print(f"{image.name}:", flush=True)
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(locks.path_of(image)), "--disable-pip"]
        # Strict: a distribution that could not be looked up is no pass.
        if subprocess.run(
            [*command, "--require-hashes", "--strict", "--progress-spinner", "off"], check=False
        ).returncode:
            found.append(image.name)
    if found:
        return f"audit: {', '.join(found)}: vulnerable, or not to be looked up from here; see above"
    return None


def main(arguments: list[str]) -> str | None:
    """Do one thing.

    Returns:
        what is wrong; None where nothing is.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.supply", description=__doc__)
    steps = {"lock": lock, "bill": bill, "check": check, "audit": audit}
    said = "; ".join(f"{name}: {step.__doc__.splitlines()[0]}" for name, step in steps.items() if step.__doc__)
    parser.add_argument("step", choices=steps, help=said)
    return steps[parser.parse_args(arguments).step]()


def _write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
