"""Tiny tokenizers, models and corpora for tests of judges, in the hub's format and made on the spot.

`V` is 257: the 256 bytes and end-of-text, one token a byte, so that token counts can be read off the text.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from harness.data.base import TokenData

EOS = "<|endoftext|>"
V = 257
WORDS = ("lantern", "harbour", "cottage", "village", "orchard", "morning", "weather", "journey")


def byte_tokenizer(bos: bool = False, eos: str = EOS, backwards: bool = False) -> PreTrainedTokenizerFast:
    """Ids in the order of the byte alphabet (or `backwards`), end-of-text last; with `bos`, it puts that in front by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=backwards)
    vocab = {symbol: i for i, symbol in enumerate(alphabet)} | {eos: V - 1}
    raw = tokenizers.Tokenizer(token_models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if bos:
        raw.post_processor = tokenizers.processors.TemplateProcessing(single=f"{eos} $A", special_tokens=[(eos, V - 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, bos_token=eos)


def tiny_gpt2(seed: int = 0, positions: int = 64) -> GPT2LMHeadModel:
    """Two layers of width 16 with weights large enough that context matters."""
    config = GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=positions, bos_token_id=V - 1, eos_token_id=V - 1
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def unigram_gpt2(log_p_V: np.ndarray, positions: int = 64) -> GPT2LMHeadModel:
    """A model that gives `log_p_V` whatever came before: its last norm yields e_0, and embeddings start with log p."""
    model = tiny_gpt2(positions=positions)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[:, 0] = torch.as_tensor(log_p_V, dtype=torch.float32)
    return model


def save(folder: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Write model and tokenizer as the hub keeps them; returns the folder as a string."""
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return str(folder)


def altered(folder: str, name: str, **changes: object) -> str:
    """The folder, with some values of one of its JSON files changed."""
    path = Path(folder, name)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def word_data(rows: int = 400, length: int = 32, seed: int = 0) -> TokenData:
    """Bytes of words drawn uniformly from `WORDS`, each " word" of 8 bytes, so that rows hold whole words.

    Their entropy is log 8 nats a word, which is the least that a judge with one token a word can reach.
    """
    rng = np.random.default_rng(seed)

    def split(n: int) -> np.ndarray:
        text = "".join(f" {word}" for word in rng.choice(WORDS, size=n * length // 8))
        return np.frombuffer(text.encode(), dtype=np.uint8).reshape(n, length)

    splits = {"train": split(rows), "valid": split(20), "test": split(40)}
    return TokenData("words", 256, length, splits, f"words-{rows}-{length}-{seed}", lambda ids: bytes(ids).decode())
