"""YAML files and arguments whose text stays as it was typed: `name: 2024_01` is no number where the field is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, StringNode

from harness.errors import UserError


def read_yaml(path: Path) -> tuple[str, Any, Any]:
    """A file's text, its content, and the same with every scalar as it was typed.

    A byte-order mark is skipped. Raises `UserError` for a file that is not YAML or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_twice(node, path)
        content = {} if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    return text, {} if content is None else content, _typed(node)


def _refuse_twice(node: yaml.Node | None, path: Path) -> None:
    """YAML's own reader takes the last of two equal keys and says nothing."""
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_twice(inner, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, inner in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UserError(f"{path}: line {line}: '{key.value}' stands in line {seen[key.value]} already; keep one")
        if isinstance(key, yaml.ScalarNode):
            seen[key.value] = line
        _refuse_twice(inner, path)


def _typed(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _typed(inner) for key, inner in node.value if isinstance(key, yaml.ScalarNode)}
    if isinstance(node, yaml.SequenceNode):
        return [_typed(inner) for inner in node.value]
    return None if node is None else node.value


def keep_text(content: dict[Any, Any], typed: Any, schema: DictConfig) -> None:
    """Put what was `typed` in the place of numbers, truth values and dates whose field in `schema` is text."""
    for key, value in content.items():
        node = _child(schema, key)
        if isinstance(value, dict) and isinstance(node, DictConfig):
            keep_text(value, typed[key], node)
        elif isinstance(value, list) and _is_text(node) and isinstance(node, ListConfig):
            content[key] = [v if v is None else t for v, t in zip(value, typed[key], strict=True)]
        elif value is not None and _is_text(node):
            content[key] = typed[key]


def quoted(line: str, value: Any, config: DictConfig) -> str:
    """An argument `key=value` with quotes around numbers and truth values where the key's field in `config` is text."""
    key, _, text = line.partition("=")
    node: Any = config
    for part in key.lstrip("+").split("."):
        node = _child(node, part)
    if isinstance(value, int | float) and _is_text(node):
        return f"{key}='{text.strip()}'"
    if isinstance(value, list) and isinstance(node, ListConfig) and _is_text(node):
        parts = [part.strip() for part in text.strip()[1:-1].split(",")]
        if len(parts) == len(value):
            pairs = zip(parts, value, strict=True)
            return f"{key}=[{','.join(repr(p) if isinstance(v, int | float) else p for p, v in pairs)}]"
    return line


def _child(node: Any, key: Any) -> Any:
    """The node of a key; for a new key of a mapping whose values are text, the type `str`."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return None
    child = node._get_node(key, validate_access=False)
    return node._metadata.element_type if child is None else child


def _is_text(node: Any) -> bool:
    if isinstance(node, ListConfig):
        return node._metadata.element_type is str
    return node is str or isinstance(node, StringNode)
