"""OmegaConf's conversions between typed nodes, plain containers and objects, with the types that they have here."""

from __future__ import annotations

from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

T = TypeVar("T")


def merged(first: Any, *others: Any) -> DictConfig:
    """One mapping of several; the first one's types hold. Raises OmegaConf's errors."""
    node = OmegaConf.merge(first, *others)
    assert isinstance(node, DictConfig)
    return node


def plain(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A mapping as plain containers, `${...}` followed if `resolve`. Raises OmegaConf's errors."""
    tree = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def typed(cls: type[T], tree: Any) -> T:
    """The dataclass `cls` with the values of `tree`. Raises OmegaConf's errors."""
    made = OmegaConf.to_object(merged(cls, tree))
    assert isinstance(made, cls)
    return made
