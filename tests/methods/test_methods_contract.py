"""What every method under `studies/method/` owes the harness; a new YAML is tested here without a new line.

The contract itself is `harness.contracts.method`.
"""

import pytest

from harness.config.registry import find_entries, studies_folder
from harness.contracts import method as contract
from harness.contracts.world import L, build_method
from tests.kit.toys import one_thread  # noqa: F401

ENTRIES = find_entries([studies_folder()])["method"]
#: Those that read a file, which tests/baselines/test_checkpoints.py puts to the contract.
OF_FILES = {name for name, entry in ENTRIES.items() if "path" in entry.content}


def test_the_shipped_methods_are_found():
    assert {"unigram", "bigram", "trigram", "ar", "mdlm", "fuji", "seq"} <= set(ENTRIES)
    assert all(entry.about for entry in ENTRIES.values()), "the first comment of a YAML says what it is"
    assert all(entry.content["samplers"] for entry in ENTRIES.values())


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - OF_FILES))
def test_contract(name, check):
    check(lambda seed: build_method(ENTRIES[name].content, seed))


SWITCHES = [
    ("mdlm", {"time_conditioning": True, "loss": "nelbo"}),
    ("mdlm", {"schedule": "cosine", "width_factor": 1.5}),
    ("udlm", {"loss": "nelbo", "reads": "posterior", "schedule": "cosine"}),
    ("fuji", {"loss": "nelbo", "prediction": "x0", "time": "adaln"}),
    ("fuji", {"schedule": "cosine", "lead": 0.5, "latent_shift": 3.0, "input_mask": 0.5}),
    ("seq", {"stages": 2, "loss": "nelbo", "prediction": "x0", "time": "adaln"}),
    ("seq", {"self_conditioning": 0.0, "slots": 2, "dims": 1}),
    ("seq", {"blank": True, "one_call_share": 0.3}),
    ("fuji", {"blank": True}),
    ("seq", {"slots": 2 * L, "schedule": "quadratic"}),
    ("seq_discrete", {"slots": 2, "codes": 64, "schedule": "cosine"}),
    ("seq_discrete", {"slots": 4, "codes": 16, "loss": "nelbo", "full_mask": 0.0}),
    ("seq_discrete", {"slots": L, "codes": 5}),
    ("seq_embedded", {"codes": 1, "segment": 1, "patch": 1, "loss": "nelbo"}),
    ("seq_embedded", {"codes": 16, "segment": L, "patch": 2, "start": 1.0, "schedule": "cosine"}),
]


@pytest.mark.parametrize(("name", "options"), SWITCHES)
def test_switches_keep_the_contract(name, options):
    """Configurations beside the shipped ones: the same checks of training and bound."""
    for check in (contract.stages, contract.bound, contract.gradients):
        check(lambda seed: build_method(ENTRIES[name].content | options, seed))
