"""Every YAML of the groups `data` and `tokenizer`: a line for people, a class, and only keys that say something new."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from harness.data.base import DataSource
from harness.data.tokenizers import TokenizerSpec

STUDIES = Path(__file__).resolve().parents[1] / "studies"
FILES = sorted([*STUDIES.glob("data/*.yaml"), *STUDIES.glob("tokenizer/*.yaml")])


def test_there_are_some():
    assert {path.stem for path in FILES} >= {"docstrings", "text", "text8", "lm1b", "openwebtext", "tinystories", "bpe"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_yaml_names_a_class_and_typed_keys(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and len(text.splitlines()[0]) > 20
    content = yaml.safe_load(text)
    module, _, name = content.pop("_target_").rpartition(".")
    made = getattr(importlib.import_module(module), name)
    assert issubclass(made, DataSource if path.parent.name == "data" else TokenizerSpec)
    typed = OmegaConf.structured(made.Options)
    defaults = {field.name: typed._get_node(field.name)._value() for field in dataclasses.fields(made.Options)}
    for key, value in content.items():
        assert key in defaults and value != defaults[key]
    merged = OmegaConf.merge(typed, content)
    assert OmegaConf.missing_keys(merged) <= {"path"}
