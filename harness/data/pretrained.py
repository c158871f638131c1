"""A tokenizer of `transformers`, by name on the hub or from a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from harness.config.fields import chosen
from harness.data.tokenizers import Tokenizer, TokenizerSpec
from harness.errors import UserError, nearest
from harness.nn.pretrained import READING_FILES, guarded, sha256_of_reading

SEPARATORS = ("eos", "newline", "none")
_TIMEOUT_SECONDS = 10.0
_DOCUMENTS_A_CALL = 1000


@dataclass
class PretrainedOptions:
    """Which tokenizer, and what stands between documents."""

    name: str = "openai-community/gpt2"  # hub name or folder
    revision: str | None = None  # commit on the hub; null: the newest (it is recorded either way)
    separator: str = chosen("eos", SEPARATORS)  # of packed documents; eos: its end-of-text, or else its [SEP]


class Pretrained(TokenizerSpec):
    """Reads a published tokenizer; no code of the repository is run."""

    Options = PretrainedOptions

    def build(self, documents: Sequence[str], cache: Path, key: str) -> Tokenizer:
        """See `TokenizerSpec.build`. Raises `UserError` where the files cannot be found, reached or read."""
        options = self.options
        folder = _folder(options.name, options.revision)
        content = sha256_of_reading(folder)
        if not content:
            raise UserError(f"tokenizer.name={options.name}: no tokenizer files in {folder}; it needs tokenizer.json")
        from transformers import AutoTokenizer

        with guarded("tokenizer.name", options.name, "try openai-community/gpt2"):
            loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        return _PretrainedTokenizer(loaded, options, content)

    def restore(self, text: str) -> Tokenizer:
        from transformers import PreTrainedTokenizerFast

        if not text:
            raise UserError(
                f"tokenizer.name={self.options.name} has no tokenizer.json, so a model cannot bring it along"
            )
        kept = json.loads(text)
        backend = tokenizers.Tokenizer.from_str(kept["backend"])
        loaded = PreTrainedTokenizerFast(tokenizer_object=backend, **kept["special"])
        return _PretrainedTokenizer(loaded, self.options, kept["content"])


def _folder(name: str, revision: str | None) -> Path:
    """The local folder of tokenizer `name`: itself, or what is fetched from the hub (or was before)."""
    given = Path(name)
    if given.is_dir():
        return given
    if given.exists():
        raise UserError(f"tokenizer.name={name} is a file; give the folder that holds tokenizer.json: {given.parent}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        siblings = [path.name for path in given.parent.iterdir() if path.is_dir()] if given.parent.is_dir() else []
        hint = nearest(given.name, siblings) or "; give a folder, or a hub name such as openai-community/gpt2"
        raise UserError(f"tokenizer.name={name}: no such folder{hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(READING_FILES), etag_timeout=_TIMEOUT_SECONDS
            )
        )
    except Exception as error:  # noqa: BLE001 - the client raises its transport's errors, which differ by version
        reason = type(error).__name__
        raise UserError(
            f"tokenizer.name={name} (revision {revision or 'newest'}) is neither a folder nor cached, and the hub gave "
            f"{reason}; check the name and the network, or use tokenizer=bpe"
        ) from error


class _PretrainedTokenizer(Tokenizer):
    def __init__(self, loaded: Any, options: PretrainedOptions, content: str) -> None:
        self._loaded, self._content = loaded, content
        # Ids may have gaps, so that the largest is not their number less one.
        self.vocab_size = max(loaded.get_vocab().values(), default=-1) + 1
        self.loses = "" if loaded.unk_token_id is None else "unknown_tokens"
        self.identity = f"pretrained-{Path(options.name).name}-{options.separator}-{content[:16]}"
        if options.separator == "eos":
            end = loaded.sep_token_id if loaded.eos_token_id is None else loaded.eos_token_id
            if end is None:
                raise UserError(
                    f"tokenizer.name={options.name} has no end-of-text token; use tokenizer.separator=newline"
                )
            self.separator, self.separator_bytes = (int(end),), 0
        elif options.separator == "newline":
            self.separator, self.separator_bytes = tuple(self.encode_batch(["\n"])[0].tolist()), 1
        else:
            self.separator, self.separator_bytes = (), 0

    def encode_batch(self, documents: Sequence[str]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = []
        for start in range(0, len(documents), _DOCUMENTS_A_CALL):
            part = list(documents[start : start + _DOCUMENTS_A_CALL])
            # `verbose=False`: documents may be longer than the model's context; they are packed, not fed to it.
            found = self._loaded(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
            encoded += [np.asarray(ids, dtype=np.int32) for ids in found["input_ids"]]
        return encoded

    def to_text(self) -> str:
        if not self._loaded.is_fast:  # it has no text of its own
            return ""
        special = {
            name: str(token) for name, token in self._loaded.special_tokens_map.items() if isinstance(token, str)
        }
        kept = {"backend": self._loaded.backend_tokenizer.to_str(), "special": special, "content": self._content}
        return json.dumps(kept)

    def lost(self, documents: Sequence[str], encoded: Sequence[np.ndarray]) -> tuple[int, int]:
        """Tokens that stand for any text that the tokenizer does not know, of all."""
        unknown = self._loaded.unk_token_id
        return sum(int((ids == unknown).sum()) for ids in encoded), sum(map(len, encoded))

    def decode(self, ids: Sequence[int]) -> str:
        return self._loaded.decode([int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
