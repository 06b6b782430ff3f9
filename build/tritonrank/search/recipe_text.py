"""Settings put into a recipe's file, whose comments, order and quotes stay as they are."""

from typing import Any

import yaml

from tritonrank.search.space import as_yaml

INDENT = 2


def with_settings(text: str, settings: dict[str, Any]) -> str:
    """The same file with other values.

    Args:
        text: a recipe; block or flow style.
        settings: ``section.key``, or a key at the top, with its value.

    Returns:
        The text. Where a setting was, its value is replaced; where a section was, the setting is put first in it; else
        the section stands at the end.
    """
    for key, value in settings.items():
        text = _with(text, key.split("."), value)
    return text


def _with(text: str, path: list[str], value: Any) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for place, name in enumerate(path):
        found = _child(node, name)
        if found is None:
            return _inserted(text, node, path[place:], value, is_root=place == 0)
        node = found
    assert node is not None
    return _replaced(text, node, as_yaml(value))


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def _replaced(text: str, node: yaml.Node, written: str) -> str:
    """The text with something else in a node's place; what follows a block (blank lines, comments) stays."""
    start, end = int(node.start_mark.index), int(node.end_mark.index)
    end = start + len(text[start:end].rstrip())
    before = text[:start] if start == 0 or text[start - 1].isspace() else f"{text[:start]} "  # `key:` without a value
    return before + written + text[end:]


def _inserted(text: str, node: yaml.Node | None, path: list[str], value: Any, *, is_root: bool) -> str:
    """The text with a setting that was not in it, in the innermost section that was."""
    written = as_yaml(value)
    if node is not None and not is_root and not node.value:  # `finetune:` or `finetune: {}`
        return _replaced(text, node, _flow(path, written))
    if isinstance(node, yaml.MappingNode) and node.value:
        start, column = int(node.value[0][0].start_mark.index), int(node.value[0][0].start_mark.column)
        if node.flow_style:
            return text[:start] + f"{_flow(path, written)[1:-1]}, " + text[start:]
        if not is_root:
            return text[:start] + f"{path[0]}: {_flow(path[1:], written)}\n" + " " * column + text[start:]
    lines = [" " * (INDENT * depth) + f"{name}:" for depth, name in enumerate(path)]
    return text.rstrip("\n") + "\n\n" + "\n".join(lines) + f" {written}\n"


def _flow(path: list[str], written: str) -> str:
    """Such as {finetune: {epochs: 2}}; of no path the value itself."""
    for name in reversed(path):
        written = f"{{{name}: {written}}}"
    return written
