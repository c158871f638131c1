"""What every sampler under `studies/sampler/` owes the harness; a new YAML is tested here without a new line.

Each is put on every method under `studies/method/` that it can draw from. The contract itself is `harness.contracts.sampler`.
"""

import pytest

from harness.config.registry import find_entries, locate, studies_folder
from harness.contracts import sampler as contract
from harness.contracts.world import build_sampler
from harness.interface import Sampler
from tests.kit.toys import one_thread  # noqa: F401

ENTRIES = find_entries([studies_folder()])
METHODS, SAMPLERS = ENTRIES["method"], ENTRIES["sampler"]
#: What a method needs so that a sampler can draw from it.
READY = {"one_call": {"one_call_share": 0.3}, "embedded_chain": {"law": "chain", "order": 2}}


def pairs() -> list[tuple[str, str]]:
    """(method, sampler) of all that go together; of methods of one class the first by name.

    What is itself a method of another YAML's class (SDTT is an MDLM) is put with the samplers that its own YAML names, and with
    those that the other class does not have.
    """
    found = {}
    classes = {locate(entry.content["_target_"]) for entry in METHODS.values()}
    for name in sorted(SAMPLERS):
        cls = locate(SAMPLERS[name].content["_target_"])
        for method, entry in sorted(METHODS.items(), reverse=True):
            target = locate(entry.content["_target_"])
            # FUJI trained along a path can be sampled on that path alone.
            apart = name == "encoder" and target.__name__ == "FUJI" and method == "fuji"
            apart |= "path" in entry.content  # of a file; see tests/baselines/test_checkpoints.py
            above = any(issubclass(target, c) and c is not target and issubclass(c, cls.methods) for c in classes)
            apart |= above and name not in entry.content["samplers"]
            if issubclass(target, cls.methods) and not apart:
                found[target, name] = (method, name)
    return sorted(found.values())


def build(method: str, name: str, seed: int = 0, **options) -> Sampler:
    """The sampler as its YAML has it, on a method whose weights say something."""
    return build_sampler(SAMPLERS[name].content | options, METHODS[method].content | READY.get(name, {}), seed)


def test_each_yaml_has_a_method_and_says_what_it_is():
    assert {name for _, name in pairs()} == set(SAMPLERS)
    assert all(entry.about for entry in SAMPLERS.values()), "the first comment of a YAML says what it is"


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("method", "name"), pairs(), ids=str)
def test_contract(method, name, check):
    check(lambda seed: build(method, name, seed))


SWITCHES = [
    ("seq", "diffusion", {"latent_share": 0.25, "eta": 0.0}),
    ("seq_discrete", "codes", {"latent_share": 1.0}),
    ("seq_distilled", "distilled_codes", {"round": 2}),
    ("seq_embedded", "embedded", {"latent_share": 0.0}),
    ("seq_embedded", "embedded", {"start": 0.5, "eta": 1.0}),
    ("fuji_independent", "path", {"path": "offset", "offset": 0.5}),
    ("fuji_independent", "path", {"path": "through", "corners": [0.5, 0.0], "eta": 0.0}),
    ("mdlm", "top_p", {"p": 0.3}),
    ("mdlm", "confidence", {"noise": 0.0}),
    ("mdlm", "remask", {"kind": "loop", "p": 0.8}),
    ("mdlm", "klass", {"history": 2, "fallback": 3}),
    ("udlm", "uniform", {"last": "greedy"}),
]


@pytest.mark.parametrize(("method", "name", "options"), SWITCHES)
def test_switches_keep_the_contract(method, name, options):
    """Options beside the shipped ones: the same checks."""
    for check in (contract.budgets, contract.refusals, contract.repeatable):
        check(lambda seed: build(method, name, seed, **options))
