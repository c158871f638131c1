"""What a resolved configuration stands for: data, problem, methods, judge, metrics and the reference set, made once.

The parent and every worker build the same session from the same configuration tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.registry import build_options, locate
from harness.config.rows import rows_of
from harness.config.schema import RunConfig
from harness.config.trees import typed
from harness.data import encode
from harness.data.base import DataSource, TokenData
from harness.errors import UserError
from harness.interface import Method, Problem, Sampler
from harness.judges.base import Judge
from harness.metrics.base import Column, Metric, Prompts, Samples, ScoreContext, columns_of
from harness.nn.transformer import TrunkShape
from harness.provenance import cpu_count, short_hash
from harness.training.distributed import check_processes
from harness.training.precision import Numerics, resolve

#: Bumped when the meaning of a stored score or sample changes in a way that no option shows.
PROTOCOL_VERSION = 2
#: What the file of a trained model calls itself.
MODEL = "few-step-harness model"


class Session:
    """Lazily built parts of a run; attributes are made at first use and kept.

    `weights` is the folder of another study's weights, to use and to add to; None: the study keeps its own. `server` is
    `tracking.uri` with its login, for who connects; the tree does not have it.
    """

    def __init__(self, tree: dict[str, Any], weights: Path | None = None, server: str | None = None) -> None:
        self.tree, self.weights = tree, weights
        self._ready: Judge | None = None  # the judge, once it is prepared
        self.counted: dict[str, Method] = {}  # methods that nothing trains, by name, once they have counted
        self.cfg = typed(RunConfig, tree)
        self.cfg.tracking.uri = server or self.cfg.tracking.uri

    def adopt(self, other: Session) -> None:
        """Take over what `other` has made already and what would be the same here: data, held-out rows, judge, metrics."""
        kept: list[str] = []
        same = all(self.tree[key] == other.tree[key] for key in ("data", "tokenizer"))
        if same and (self.cfg.scale.length, self.cfg.cache_dir) == (other.cfg.scale.length, other.cfg.cache_dir):
            kept.append("data")
            if self.cfg.study.samples == other.cfg.study.samples:
                kept += ["_held_out", "held_out_hash", "reference", "held_out"]
            # A prepared judge knows the data and the device.
            if self.tree["judge"] == other.tree["judge"] and self.cfg.compute == other.cfg.compute:
                kept += ["judge", "judge_files"]
        kept += ["metrics"] if self.tree["metrics"] == other.tree["metrics"] else []
        self.__dict__ |= {name: other.__dict__[name] for name in kept if name in other.__dict__}
        if "judge" in kept and "judge" in other.__dict__:
            self._ready = other._ready

    # ---- places ---------------------------------------------------------------------------------------------------
    @property
    def folder(self) -> Path:
        """`runs/<study>`: everything that this study writes."""
        return Path(self.cfg.runs_dir).resolve() / self.cfg.study.name

    @property
    def cache(self) -> Path:
        """Files that can be made again: token streams, tokenizers, judges, features."""
        return Path(self.cfg.cache_dir).resolve()

    # ---- parts ----------------------------------------------------------------------------------------------------
    @cached_property
    def numerics(self) -> Numerics:
        """Device, precision and what is compiled, resolved."""
        c, s, study = self.cfg.compute, self.cfg.scale, self.cfg.study
        call = (
            2 * s.depth * (4 + 2 * s.mlp_ratio) * s.width**2 * s.length
        )  # FLOPs for a sequence, in the blocks' matrices
        sampling = call * study.samples * sum(study.nfe) * len(study.temperatures)
        numerics = resolve(c.device, c.precision, c.compile, 3 * call * s.steps * s.batch, sampling)
        check_processes(c.processes, numerics.device)
        return dataclasses.replace(
            numerics,
            eval_tokens=c.eval_tokens,
            recompute=c.activation_checkpointing,
            compile_training=numerics.compile_training and not c.shard,
        )

    @cached_property
    def data(self) -> TokenData:
        """Read, and turned into ids by as many processes as there are workers, where the cache does not have them."""
        source_cls, source_options = build_options(self.tree["data"], "data")
        tokenizer_cls, tokenizer_options = build_options(self.tree["tokenizer"], "tokenizer")
        source: DataSource = source_cls(source_options)
        with encode.at_most(self.cfg.compute.workers or cpu_count()):
            return source.load(self.cfg.scale.length, self.cache, tokenizer_cls(tokenizer_options))

    @cached_property
    def problem(self) -> Problem:
        s = self.cfg.scale
        shape = TrunkShape(s.width, s.depth, s.heads, s.mlp_ratio, s.stem)
        return Problem(self.data.vocab_size, s.length, shape, self.data.task, self.data.decode)

    @property
    def rows(self) -> dict[str, list[str]]:
        """Labels of the samplers that run, by method."""
        return rows_of(self.tree["methods"], self.cfg.only)

    def build(self, name: str, seed: int = 0) -> Method:
        """A fresh method on the CPU, its weights drawn from `seed`."""
        cls, options = build_options(self.tree["methods"][name], f"methods.{name}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            method = _built(cls, self.problem, options, f"methods.{name}")
        self._check_parts(name, method)
        return method

    def _check_parts(self, name: str, method: Method) -> None:
        batch, parts, least = self.cfg.scale.batch, self.cfg.train.accumulate, method.smallest_part
        if method.stages() and batch // parts < least:
            into = f", cut into train.accumulate={parts} parts" if parts > 1 else ""
            raise UserError(
                f"scale.batch={batch}{into}: methods.{name} trains on {least} sequences at a time or more; "
                f"use scale.batch={least * parts} or more"
            )

    def sampler(self, method: Method, name: str, label: str) -> Sampler:
        """The sampler `label` of the method that the study calls `name`, drawing from `method`."""
        cls, options = build_options(self.tree["methods"][name]["samplers"][label], f"methods.{name}.samplers.{label}")
        return cls(method, options)

    def modules(self, name: str, label: str = "") -> list[str]:
        """Names of the modules that define a method and, with a label, its sampler."""
        nodes = [self.tree["methods"][name], *([self.tree["methods"][name]["samplers"][label]] if label else [])]
        return [node["_target_"].rpartition(".")[0] for node in nodes]

    @cached_property
    def metrics(self) -> list[Metric]:
        built = [build_options(node, f"metrics.{name}") for name, node in self.tree["metrics"].items()]
        return [cls(options) for cls, options in built]

    @property
    def columns(self) -> list[Column]:
        return columns_of(self.metrics, (self.data, self.judge))

    @cached_property
    def judge(self) -> Judge:
        """The judge's object; `prepare` is called by who needs its weights."""
        cls, options = build_options(self.tree["judge"], "judge")
        return cls(options)

    @cached_property
    def judge_files(self) -> str:
        """`Judge.files_key`, read once."""
        return self.judge.files_key()

    def ready_judge(self, tell: Callable[[str], None]) -> Judge:
        """The judge, prepared (loaded or trained) once."""
        if self._ready is not self.judge:
            self.judge.prepare(self.data, self.cache, self.numerics.device, tell)
            self._ready = self.judge
        return self.judge

    # ---- held-out text --------------------------------------------------------------------------------------------
    @cached_property
    def _held_out(self) -> np.ndarray:
        """Test rows, then validation rows, each part in a fixed random order; (2 n, L)."""
        n = self.cfg.study.samples
        total = sum(len(self.data.splits[split]) for split in ("test", "valid"))
        if total < 2 * n:
            raise UserError(
                f"study.samples={n}: the reference and the held-out row need {2 * n} held-out sequences of "
                f"{self.data.length} tokens and {self.data.name} has {total}; use study.samples={total // 2} or less"
            )
        return np.concatenate([self.data.some(split, 2 * n) for split in ("test", "valid")])[: 2 * n]

    def with_texts(self, x_NL: np.ndarray) -> Samples:
        """Sequences (N, L) and their texts."""
        return Samples(x_NL, [self.data.decode(row.tolist()) for row in x_NL])

    @cached_property
    def reference(self) -> Samples:
        """The n held-out sequences that MAUVE compares with."""
        return self.with_texts(self._held_out[: self.cfg.study.samples])

    @cached_property
    def held_out(self) -> Samples:
        """Another n held-out sequences, scored like samples: the ceiling that a table needs."""
        return self.with_texts(self._held_out[self.cfg.study.samples :])

    @cached_property
    def score_context(self) -> ScoreContext:
        seed = self.cfg.study.sampling_seed
        return ScoreContext(self.data, self.reference, self.judge, self.cache, seed, self.prompts)

    @cached_property
    def prompts(self) -> Prompts | None:
        """The held-out row's texts, half of each hidden, where the study draws given the rest."""
        kind, x_NL = self.cfg.study.prompt, self.held_out.x_NL
        if kind == "none":
            return None
        rank_NL = np.broadcast_to(np.arange(x_NL.shape[1]), x_NL.shape)
        if kind == "half":
            rank_NL = np.random.default_rng((self.cfg.study.sampling_seed, 83)).permuted(rank_NL, axis=1)
        return Prompts(self.held_out.texts, x_NL, rank_NL >= x_NL.shape[1] // 2)

    # ---- identities -----------------------------------------------------------------------------------------------
    def weights_key(self, name: str, seed: int) -> str:
        """Identity of the weights: methods that differ only in their samplers share it."""
        node = {k: v for k, v in self.tree["methods"][name].items() if k != "samplers"}
        train = dataclasses.asdict(self.cfg.train)
        for irrelevant in ("checkpoint_seconds", "checkpoint_share", "validations", "valid_sequences", "log_every"):
            train.pop(irrelevant)
        # Several processes add in another order, and a method that keeps latents of its batches keeps others: like the
        # number of threads, their number is part of what may be continued and of what is the same to the bit.
        several = {"processes": self.cfg.compute.processes} if self.cfg.compute.processes > 1 else {}
        compiled = {"compiled": True} if self.numerics.compile_training else {}
        found = locate(node["_target_"]).files_key(node)
        files = {"files": found} if found else {}
        return short_hash(
            several
            | compiled
            | files
            | {
                "method": node,
                "scale": dataclasses.asdict(self.cfg.scale),
                "train": train,
                "data": self.data.fingerprint,
                "seed": seed,
                "device": self.numerics.device.split(":")[0],
                "precision": self.numerics.precision,
                "threads": self.cfg.compute.threads,
            },
            12,
        )

    def described(self, name: str, seed: int) -> dict[str, Any]:
        """All that a trained model needs beside its weights: class and options, samplers, sizes, tokenizer, how it draws."""
        data = self.data
        return {
            "kind": MODEL,
            "method": name,
            "seed": seed,
            "config": self.tree["methods"][name],
            "vocab_size": data.vocab_size,
            "length": data.length,
            "shape": dataclasses.asdict(self.problem.shape),
            "data": data.name,
            "tokenizer": self.tree["tokenizer"] if data.tokenizer_text else None,
            "tokenizer_text": data.tokenizer_text() if data.tokenizer_text else "",
            "sampling_seed": self.cfg.study.sampling_seed,
            "chunk": self.cfg.compute.sample_batch,
            "precision": self.numerics.precision,
            "eval_tokens": self.numerics.eval_tokens,
        }

    def cell_key(self, name: str, label: str, seed: int) -> str:
        """Identity of a cell: everything that its weights and its sampler depend on."""
        return short_hash([self.weights_key(name, seed), self.tree["methods"][name]["samplers"][label]], 12)

    @cached_property
    def held_out_hash(self) -> str:
        return hashlib.sha256(self._held_out.tobytes()).hexdigest()[:16]

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """All that a score depends on besides the samples; needs a prepared judge."""
        return {
            "version": PROTOCOL_VERSION,
            "judge": self.judge.identity,
            "metrics": [metric.identity() for metric in self.metrics],
            "samples": self.cfg.study.samples,
            "sampling_seed": self.cfg.study.sampling_seed,
            "length": self.cfg.scale.length,
            "held_out": self.held_out_hash,
        } | ({} if self.cfg.study.prompt == "none" else {"prompt": self.cfg.study.prompt})


def _built(cls: Any, problem: Problem, options: Any, key: str) -> Method:
    """`cls(problem, options)`; raises `UserError` where its weights do not fit into memory."""
    try:
        return cls(problem, options)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            shape = (
                f"scale.width={problem.shape.width}, scale.depth={problem.shape.depth}, scale.length={problem.length}"
            )
            raise UserError(f"{key}: its weights do not fit into memory with {shape}; use a smaller scale") from error
        raise
