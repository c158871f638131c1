"""Compiled training: where it is chosen, that it goes on to the same bits, and what happens where there is no toolchain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.config.load import load
from harness.study.session import Session
from harness.training import loop
from tests.kit.toys import job_of, one_thread, tiny_problem  # noqa: F401


def numerics(*words: str):
    return Session(load(["compute.device=cpu", *words]).tree).numerics


@pytest.mark.parametrize(
    ("words", "training", "sampling"),
    [
        (["study=few_step"], True, True),
        (["study=few_step", "scale.steps=90"], False, True),
        (["study=few_step", "study.samples=200", "study.nfe=[2,4]"], True, False),
        (["study=few_step", "compute.compile='false'"], False, False),
        (["study=smoke"], False, False),
        (["study=smoke", "compute.compile=true"], True, True),
    ],
)
def test_networks_are_compiled_where_that_saves_more_than_it_takes(words, training, sampling, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert (numerics(*words).compile_training, numerics(*words).compile_sampling) == (training, sampling)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if "compute.compile=true" not in words:
        assert not numerics(*words).compile_training and not numerics(*words).compile_sampling


def test_activation_checkpointing_is_of_training_and_changes_no_bit(tmp_path):
    weights = []
    for again in (False, True):
        torch.manual_seed(0)
        method = MDLM(tiny_problem(), MDLMOptions())
        job = job_of(method, tmp_path / str(again), steps=5)
        loop.train(replace(job, numerics=replace(job.numerics, recompute=again)))
        weights.append(list(method.parameters()))
        assert method.network.trunk.recompute == again
    assert all(map(torch.equal, *weights))
    assert numerics("study=smoke", "compute.activation_checkpointing=true").recompute


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
def test_compiled_training_goes_on_to_the_same_bits_and_does_without_a_toolchain(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    words = [sys.executable, "-m", "tests.kit.compiled_kit", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True, env=environment)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["resumed"] and said["eager"] and said["kept"] == [".so"]
    assert 0 < said["apart"] < 1e-2, "compiled products round otherwise, and that is all"
    # Encoder with a gradient and frozen, decoder, prior with a gradient and for its first estimate, one-call network.
    assert said["graphs"] == 6
    first, second = [line for line in done.stderr.splitlines() if "torch.compile failed" in line]
    assert first.startswith("MDLM: torch.compile failed (") and first.endswith("); training runs uncompiled")
    assert second.startswith("SEQ: torch.compile failed (") and "limit" in second, "beyond the limit a line says so"
