"""The default judge: a small causal transformer with its own tokenizer, trained once on the study's training split.

It needs no download, so that a study runs anywhere; its numbers compare only with numbers of the same weights, whose
hash, with that of its configuration and tokenizer, is its identity. Its own perplexity on held-out text is printed beside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file

from harness.config.fields import chosen, ranged
from harness.data.base import TokenData
from harness.data.files import digest, write_atomically
from harness.errors import UserError
from harness.judges.corpus import END_OF_TEXT, END_OF_TEXT_ID, token_stream, train_tokenizer
from harness.judges.fit import Recipe, fit
from harness.judges.scoring import POOLS, CausalJudge, CausalReader, Reading, load_causal_model
from harness.nn.pretrained import DTYPES, quiet_transformers, sha256_of_reading, sha256_of_weights
from harness.training.precision import threads

JUDGE_VERSION = 2
_BYTES = 256
#: Characters that are read for each token that training sees, and the least.
_CHARS_A_TOKEN, _LEAST_CHARS = 8, 1 << 20
_ROOM = 4  # times the context, so that the network accepts a longer one later
#: Options that change how texts are read, but not the weights.
_READING = frozenset({"dtype", "pool", "stride", "batch_tokens", "heldout_rows", "checkpoint_every"})


@dataclass
class TrainedJudgeOptions:
    """Size, training and reading of the judge."""

    vocab: int = ranged(2048, _BYTES + 1)  # all bytes and end-of-text
    width: int = ranged(128, 1)
    depth: int = ranged(2, 1)
    heads: int = ranged(2, 1)
    context: int = ranged(128, 2)  # tokens of a window
    steps: int = ranged(1500, 1)
    batch: int = ranged(8, 1)  # windows of a step
    lr: float = ranged(3e-3, 0, above=True)
    muon_lr: float = ranged(0.0, 0)  # of the matrices of its blocks, which Muon moves; 0: AdamW moves all
    warmup: int = ranged(100, 0)  # steps
    weight_decay: float = ranged(0.1, 0)
    clip: float = ranged(1.0, 0, above=True)
    seed: int = ranged(0, 0)
    corpus_chars: int = ranged(8_000_000, 1)  # that are read at most
    tokenizer_chars: int = ranged(2_000_000, 1)  # that the tokenizer learns from
    precision: str = chosen("auto", ("auto", "float32", "bfloat16"))  # of training; auto: bfloat16 where it is native
    threads: int = ranged(1, 0)  # of torch; 0: its number is left alone
    checkpoint_every: int = ranged(100, 1)  # steps
    dtype: str = chosen("float32", DTYPES)  # of scores
    pool: str = chosen("mean", POOLS)  # of the last hidden states
    stride: int = ranged(0, 0)  # tokens between windows; 0: half the context
    batch_tokens: int = ranged(8192, 1)  # read at a time
    heldout_rows: int = ranged(512, 1)  # of the held-out perplexity


class TrainedJudge(CausalJudge):
    """See the head of this file; cached in `cache/judges/<hash of data and options>` in the hub's format."""

    Options = TrainedJudgeOptions

    def __init__(self, options: TrainedJudgeOptions) -> None:
        super().__init__(options)
        o = options
        if o.width % (2 * o.heads):
            raise UserError(
                f"judge width={o.width} does not give {o.heads} heads of even size; "
                f"use width={max(1, round(o.width / (2 * o.heads))) * 2 * o.heads}"
            )
        self.merges = o.vocab > _BYTES + 1
        self.reading = Reading(
            o.context, o.stride or max(1, o.context // 2), o.pool, o.batch_tokens, eos_id=END_OF_TEXT_ID
        )
        #: Steps that `prepare` really ran: 0 where the cache held the judge.
        self.trained_steps = 0

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Load the judge of these data and options, training it first where the cache does not hold it."""
        o = self.options
        folder = self._folder(data, cache)
        if not (folder / "judge.json").is_file():
            self._train(data, folder, self._deciding, device, progress)
        try:
            self.record = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
            trained_as = self.record["sha256"]
            model = load_causal_model(str(folder), o.dtype, device, attn_implementation="sdpa")
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            found = _hash_of(folder)
        except UserError:
            raise
        except Exception as error:  # the libraries raise many kinds for a damaged file
            raise UserError(f"the judge in {folder} cannot be read; delete that folder to train it again") from error
        if found != trained_as:
            raise UserError(f"the judge in {folder} is not the one that was trained there; delete that folder")
        reader = CausalReader(
            model,
            lambda texts: [e.ids for e in tokenizer.encode_batch(texts)],
            tokenizer.decode,
            o.dtype,
            self.reading,
        )
        self._read_by(reader, data)

    def left_to_train(self, data: TokenData, cache: Path) -> int:
        o = self.options
        return 0 if (self._folder(data, cache) / "judge.json").is_file() else o.steps * o.batch * o.context

    @property
    def _deciding(self) -> dict:
        """The options that the weights depend on."""
        return {key: value for key, value in dataclasses.asdict(self.options).items() if key not in _READING}

    def _folder(self, data: TokenData, cache: Path) -> Path:
        return Path(cache) / "judges" / digest([JUDGE_VERSION, data.fingerprint, self._deciding])[:24]

    @property
    def identity(self) -> str:
        """`trained-<hash of weights, configuration and tokenizer>/<dtype>/<how it reads>`."""
        return f"trained-{self._prepared.record['sha256'][:16]}/{self.options.dtype}/{self.reading.describe()}"

    def _train(
        self, data: TokenData, folder: Path, deciding: dict, device: str, progress: Callable[[str], None]
    ) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        o = self.options
        part = folder.with_name(folder.name + ".part")  # what a killed run left, to go on from
        part.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        tokenizer, stream_T = self._text(data, part, progress)
        half = _bfloat16(o.precision, device)
        recipe = Recipe(o.steps, o.batch, o.context, o.lr, o.warmup, o.weight_decay, o.clip, o.seed, half, o.muon_lr)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=o.width,
            intermediate_size=max(16, round(o.width * 8 / 3 / 16) * 16),
            num_hidden_layers=o.depth,
            num_attention_heads=o.heads,
            num_key_value_heads=o.heads,
            max_position_embeddings=_ROOM * o.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_OF_TEXT_ID,
            # The fused kernel's backward pass is several times slower than plain products in bfloat16 on CPUs.
            attn_implementation="eager" if half and device == "cpu" else "sdpa",  # type: ignore[call-arg]  # of its base
        )
        with threads(o.threads if device == "cpu" else 0), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(o.seed)  # weights are drawn on the CPU whatever the device
            model = LlamaForCausalLM(config).float().to(device)
            size = sum(p.numel() for p in model.parameters())
            progress(f"judge: trains {size / 1e6:.2f} M parameters on {len(stream_T) / 1e6:.2f} M tokens of text, once")
            label = digest([deciding, half, device, torch.get_num_threads()])
            loss = fit(model, stream_T, recipe, part / "fit.safetensors", o.checkpoint_every, label, progress)
        self.trained_steps = o.steps
        model = model.cpu()
        fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        with quiet_transformers():
            model.save_pretrained(fresh)
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(fresh)
        tokenizer.save(str(fresh / "tokenizer.json"))
        shutil.copy(part / "curves.jsonl", fresh)
        record = {
            "sha256": _hash_of(fresh),
            "options": deciding,
            "data": data.fingerprint,
            "parameters": size,
            "training_tokens": o.steps * o.batch * min(o.context, len(stream_T)),
            "training_precision": "bfloat16" if half else "float32",
            "training_device": device,
            "last_training_loss": loss,
        }
        (fresh / "judge.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        try:
            os.replace(fresh, folder)
        except OSError:  # another process finished the same judge first
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        progress(f"judge: trained in {time.monotonic() - began:.0f} s")

    def _text(
        self, data: TokenData, part: Path, progress: Callable[[str], None]
    ) -> tuple[tokenizers.Tokenizer, np.ndarray]:
        """Tokenizer and stream of ids, from the unfinished run's folder where both are there."""
        paths = part / "tokenizer.json", part / "stream.npy"
        if all(path.is_file() for path in paths):
            with contextlib.suppress(Exception):  # damaged: made again below
                return tokenizers.Tokenizer.from_file(str(paths[0])), np.load(paths[1], allow_pickle=False)
        progress("judge: learns its tokenizer and reads the training text")
        o = self.options
        # A short training sees little, and what it cannot see need not be read.
        most = max(_LEAST_CHARS, _CHARS_A_TOKEN * o.steps * o.batch * o.context)
        tokenizer = train_tokenizer(data, o.vocab, min(o.tokenizer_chars, most))
        stream_T = token_stream(data, tokenizer, min(o.corpus_chars, most))
        write_atomically(paths[0], lambda file: file.write(tokenizer.to_str().encode()))
        write_atomically(paths[1], lambda file: np.save(file, stream_T, allow_pickle=False))
        return tokenizer, stream_T


def _hash_of(folder: Path) -> str:
    return digest([sha256_of_weights(load_file(folder / "model.safetensors")), sha256_of_reading(folder)])


def _bfloat16(precision: str, device: str) -> bool:
    """Whether training multiplies in bfloat16: as asked, or where that is faster than float32."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent on other processors and versions
    return device == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)
