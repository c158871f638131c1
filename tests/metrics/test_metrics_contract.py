"""What every metric of `studies/metric` owes the harness; a new YAML is tested here without a new line.

The contract itself is `harness.contracts.metric`.
"""

import pytest

from harness.config.registry import build_options, find_entries, studies_folder
from harness.contracts import metric as contract
from harness.metrics.base import Metric, columns_of

ENTRIES = find_entries([studies_folder()])["metric"]


def build(name: str) -> Metric:
    if name == "mauve":
        pytest.importorskip("mauve")
    cls, options = build_options(ENTRIES[name].content)
    return cls(options)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_contract(name, check):
    check(lambda seed: build(name))


def test_there_are_metrics_and_no_column_is_of_two_of_them():
    assert len(ENTRIES) >= 9
    names = [column.name for column in columns_of([build(name) for name in ENTRIES])]
    assert len(set(names)) == len(names) and not {f"{name}_se" for name in names} & set(names)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_units_are_named(name):
    """A column without a unit is a plain number: of a distance between features, or a share that its title names."""
    bare = [column for column in build(name).columns if not column.unit]
    assert len(bare) <= 2 and all("accuracy" in c.title or "distance" in c.title for c in bare)
