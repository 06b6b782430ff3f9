"""python -m deploy.helm: write what is made of the chart: values.schema.json and deploy/kustomize/base.

python -m deploy.helm                      write both
python -m deploy.helm --check              only say whether they are up to date
python -m deploy.helm diff OLD NEW         what changes, and what restarts, from one values file to another
python -m deploy.helm size --requests-per-second 50     replicas and resources for a load, of what was measured
"""

import argparse
import sys
from pathlib import Path

from tritonrank.errors import TritonRankError

from deploy.helm import kustomize, links, schema, size
from deploy.helm.changes import changes
from deploy.helm.chart import relative, render


def main(arguments: list[str]) -> str | None:
    """Do one of them.

    Returns:
        what is wrong, and what to type; None where all is well.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.helm", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    verbs = parser.add_subparsers(dest="verb")
    diff = verbs.add_parser("diff", help="what an upgrade from one values file to another changes")
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    size.add_arguments(verbs.add_parser("size", help="replicas and resources for a load"))
    given = parser.parse_args(arguments)
    try:
        if given.verb == "diff":
            print("\n".join(changes(render([given.old]), render([given.new])).lines()))
            return None
        if given.verb == "size":
            print(size.values_for(given), end="")
            return None
        return _write(given.check)
    except TritonRankError as error:
        return str(error)


def _write(only_check: bool) -> str | None:
    text = schema.written()
    wrong = [relative(path) for path in links.differing()]
    is_old = not schema.PATH.exists() or schema.PATH.read_text(encoding="utf-8") != text
    if not only_check:
        links.write()
        schema.PATH.write_text(text, encoding="utf-8")  # helm reads it while it renders the base
    base = kustomize.base()
    wrong += [relative(schema.PATH)] * is_old + [relative(kustomize.BASE / name) for name in kustomize.differing(base)]
    if only_check:
        return f"not what the chart makes: {', '.join(wrong)}; type: python -m deploy.helm" if wrong else None
    kustomize.write(base)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
