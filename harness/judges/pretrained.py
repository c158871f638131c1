"""Any causal language model of the hub, or of a folder in its format, as a judge.

Shapes: N texts, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.fields import chosen, ranged
from harness.data.base import TokenData
from harness.data.files import digest
from harness.data.pack import file_digest
from harness.errors import UserError
from harness.judges.corpus import END_OF_TEXT
from harness.judges.scoring import KEY, POOLS, CausalJudge, CausalReader, Reading, load_causal_model
from harness.nn.pretrained import DTYPES, guarded, locate, need_table, sha256_of_reading, sha256_of_weights

_BOS_RULES = ("auto", "none", "eos")
_DEFAULT_CONTEXT = 1024
_INSTEAD = "use judge=trained, which needs no download"


@dataclass
class ReadingOptions:
    """How a causal language model reads."""

    dtype: str = chosen("float32", DTYPES)
    context: int = ranged(0, 2, also=(0,))  # tokens of a window; 0: the model's own
    stride: int = ranged(0, 0)  # tokens between windows; 0: half the context
    bos: str = chosen("auto", _BOS_RULES)  # in front of a text; auto: as its tokenizer does, eos: the end-of-text token
    pool: str = chosen("mean", POOLS)  # of the last hidden states
    batch_tokens: int = ranged(8192, 1)  # read at a time
    heldout_rows: int = ranged(512, 1)  # of the held-out perplexity
    texts: int = ranged(0, 0)  # of a set of samples, the first so many; 0: all


@dataclass
class PretrainedJudgeOptions(ReadingOptions):
    """Which model, and how it reads."""

    model: str = "openai-community/gpt2"  # hub name or folder
    revision: str | None = None  # commit on the hub; null: the newest


class PretrainedJudge(CausalJudge):
    """A pretrained model, loaded once in a named dtype, all of its weights checked to be there."""

    Options: type = PretrainedJudgeOptions
    merges = True
    revision: str | None = None

    def __init__(self, options: PretrainedJudgeOptions) -> None:
        super().__init__(options)
        self.texts = options.texts
        self.source, self.revision = options.model, options.revision
        if not options.model:
            raise UserError(f"judge model is empty; name a hub model such as {PretrainedJudgeOptions.model}")

    def check(self, data: TokenData) -> None:
        """Raise `UserError` for a model that is neither here nor on a hub that answers, or shorter than its tokenizer."""
        _tokenizer(self.source, self.revision)

    def files_key(self) -> str:
        """Hash of a folder's weights, configuration and tokenizer as files; empty for a name on the hub."""
        folder = Path(self.source)
        if not folder.is_dir():
            return ""
        return digest([sha256_of_reading(folder), [file_digest(path) for path in sorted(folder.glob("*.safetensors"))]])

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Load model and tokenizer; `UserError` where they are absent, incomplete, or no causal language model."""
        o = self.options
        source = self.source
        progress(f"judge: loads {source}")
        where, tokenizer = _tokenizer(source, self.revision)
        with guarded(KEY, source, _INSTEAD):
            model = load_causal_model(source, o.dtype, device, **where)
        commit = where.get("revision")
        version = commit[:12] if commit else "content-" + _content(Path(source), model)[:16]
        longest = _longest_context(model.config)
        context = o.context or longest or _DEFAULT_CONTEXT
        if longest and context > longest:
            raise UserError(f"judge context={context} is longer than {source} can read; use at most {longest}")
        reading = Reading(
            context,
            o.stride or max(1, context // 2),
            o.pool,
            o.batch_tokens,
            bos_id=_bos_id(o.bos, tokenizer, source),
            eos_id=tokenizer.eos_token_id,
        )
        reader = CausalReader(model, lambda texts: _ids(tokenizer, texts), tokenizer.decode, o.dtype, reading)
        name = Path(source).name if Path(source).is_dir() else source  # a path would tie the number to one disk
        first = f"/first-{self.texts}" if self.texts else ""
        self._identity = f"{name}@{version}/{o.dtype}/{reading.describe()}{first}"
        self._read_by(reader, data)

    @property
    def identity(self) -> str:
        """`<name>@<revision, or hash of weights, configuration and tokenizer>/<dtype>/<how it reads>`."""
        return self._prepared._identity


def _tokenizer(source: str, revision: str | None) -> tuple[dict[str, Any], Any]:
    """Where the model is (see `locate`), and its tokenizer; raises `UserError` unless the model has a row for every id."""
    where = locate(source, revision, KEY, _INSTEAD)
    from transformers import AutoConfig, AutoTokenizer

    with guarded(KEY, source, _INSTEAD):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    need_table(config, tokenizer, KEY, source)
    return where, tokenizer


def _content(folder: Path, model: Any) -> str:
    """Hash of weights, configuration and tokenizer: all that decides how a text is read."""
    return digest([sha256_of_weights(model.state_dict()), sha256_of_reading(folder)])


def _longest_context(config: Any) -> int:
    """Positions that the model was built for; 0 where its configuration names none."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 0)


def _bos_id(rule: str, tokenizer: Any, name: str) -> int | None:
    """The id put in front of each text, or None; see `PretrainedJudgeOptions`."""
    if rule == "none":
        return None
    if rule == "eos":
        if tokenizer.eos_token_id is None:
            raise UserError(f"judge bos=eos: {name} has no end-of-text token; use bos=none")
        return tokenizer.eos_token_id
    # What the tokenizer does by itself is what the model was trained with; a BOS that it only names is not (GPT-2).
    front = tokenizer("a", add_special_tokens=True)["input_ids"][:1]
    return tokenizer.bos_token_id if front == [tokenizer.bos_token_id] else None


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids without special tokens put around; an end-of-text in the text becomes the tokenizer's own."""
    if tokenizer.eos_token and tokenizer.eos_token != END_OF_TEXT:
        texts = [text.replace(END_OF_TEXT, tokenizer.eos_token) for text in texts]
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
