"""Score texts with a causal language model of `transformers`, and pool its last hidden states, in one pass.

A text is tokenised, given a BOS where the judge has one, and read in the windows of `harness.judges.windows`: every token is
scored once, no text is cut, no remainder of a batch is dropped.

Shapes: N texts, B windows of a batch, T tokens of a window, V vocabulary, F features.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import TokenData
from harness.data.files import texts_digest
from harness.errors import UserError
from harness.judges.base import Judge, TextScores
from harness.judges.corpus import END_OF_TEXT
from harness.judges.windows import Window, batches_of, windows_of
from harness.nn.pretrained import DTYPES, load_checked
from harness.nn.slices import tokens_at_a_time
from harness.training.distributed import Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "judge model"  # what a user sets, in errors
POOLS = ("mean", "last")
_SETS_KEPT = 4  # samples, reference and held-out text come in turns
_LOGITS_AT_ONCE = 2**24  # 64 MB in float32: what one call of log-softmax copies


def load_causal_model(source: str, dtype: str, device: str, **where: Any) -> PreTrainedModel:
    """`source` (a folder or a hub name) as a causal language model in evaluation mode; see `load_checked` for errors."""
    from transformers import AutoModelForCausalLM

    model = load_checked(AutoModelForCausalLM, source, dtype, KEY, "use judge=trained", **where)
    return model.to(device)  # type: ignore[arg-type]  # its decorator hides `self`


@dataclass(frozen=True)
class Reading:
    """How texts are read: token counts, the pooling of features, and ids of begin and end of text (None: has none)."""

    context: int
    stride: int
    pool: str
    batch_tokens: int
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.context:
            raise UserError(
                f"judge stride={self.stride} must be at least 1 and below context={self.context}; "
                f"use {self.context // 2}"
            )

    def describe(self) -> str:
        """The part of a judge's identity that says how it reads; the batch size changes rounding only: not in it."""
        bos = "no-bos" if self.bos_id is None else f"bos{self.bos_id}"
        eos = "no-eos" if self.eos_id is None else f"eos{self.eos_id}"
        return f"ctx{self.context}-stride{self.stride}/{bos}-{eos}/features-{self.pool}"


@dataclass
class _Totals:
    """Sums over the windows of each text, filled batch by batch."""

    nll_N: np.ndarray
    tokens_N: np.ndarray
    hidden_NF: np.ndarray
    pooled_N: np.ndarray

    def add_up(self, group: Group, device: torch.device) -> None:
        """Over the processes of a group; where one has read a text the others have zeros."""
        for name, value in vars(self).items():
            total = torch.from_numpy(value).to(device)
            group.add(total)
            setattr(self, name, total.cpu().numpy())


class CausalReader:
    """A loaded model with its tokenizer; `read` gives scores and features of the same texts from one pass.

    `tokenize` maps texts to lists of ids without special tokens added, `spell` ids to text. The model must be in
    evaluation mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenize: Callable[[list[str]], list[list[int]]],
        spell: Callable[[list[int]], str],
        dtype: str,
        reading: Reading,
    ) -> None:
        found = {parameter.dtype for parameter in model.parameters()}
        if found != {DTYPES[dtype]}:
            raise UserError(f"judge dtype={dtype} was asked for, but its weights are {sorted(map(str, found))}")
        self.model, self.tokenize, self.spell, self.dtype, self.reading = model, tokenize, spell, dtype, reading
        self.device = next(model.parameters()).device
        self._kept: OrderedDict[str, tuple[TextScores, np.ndarray]] = OrderedDict()

    def read(self, texts: Sequence[str], group: Group | None = None) -> tuple[TextScores, np.ndarray]:
        """NLL (nats, float64), scored tokens, and features (N, F) float32 of each text, in the order given.

        Features are pooled over the whole text, past an end-of-text too; those of a text without tokens are zeros.
        The last sets of texts are remembered: perplexity and MAUVE of the same samples cost one pass. The processes of a
        `group` read a batch each in turn, and all return what one process does.
        """
        key = texts_digest(texts)
        if key not in self._kept:
            self.keep(texts, *self._read(list(texts), group or Group()))
        scores, features_NF = self._kept[key]
        return copy.deepcopy(scores), features_NF.copy()

    def keep(self, texts: Sequence[str], scores: TextScores, features_NF: np.ndarray) -> None:
        """Remember what was read of these texts, here or by other processes."""
        self._kept[texts_digest(texts)] = scores, features_NF
        while len(self._kept) > _SETS_KEPT:
            self._kept.popitem(last=False)

    def _read(self, texts: list[str], group: Group) -> tuple[TextScores, np.ndarray]:
        reading = self.reading
        prefix = [] if reading.bos_id is None else [reading.bos_id]
        ids = [prefix + list(found) for found in self.tokenize(texts)] if texts else []
        if len(ids) != len(texts):
            raise RuntimeError(f"the judge's tokenizer returned {len(ids)} texts for {len(texts)}")
        skip = len(prefix)
        scored_to = [_end_of_scored(found, skip, reading.eos_id) for found in ids]
        windows = [
            window
            for number, found in enumerate(ids)
            if len(found) > skip
            for window in windows_of(number, len(found), reading.context, reading.stride)
        ]
        n = len(texts)
        width = self.model.config.get_text_config().hidden_size
        totals = _Totals(np.zeros(n), np.zeros(n, np.int64), np.zeros((n, width)), np.zeros(n, np.int64))
        batches = list(batches_of(windows, min(reading.batch_tokens, tokens_at_a_time())))
        with torch.inference_mode(), _full_precision():
            for number in group.parts(len(batches)):
                self._read_batch(batches[number], ids, scored_to, skip, totals)
        totals.add_up(group, self.device)
        features_NF = totals.hidden_NF / np.maximum(totals.pooled_N, 1)[:, None]
        scores = TextScores(totals.nll_N, totals.tokens_N, self._scored_chars(texts, ids, skip))
        return scores, features_NF.astype(np.float32)

    def _scored_chars(self, texts: list[str], ids: list[list[int]], skip: int) -> np.ndarray:
        """Characters (N,) up to the first end-of-text, less those of the first token where no BOS lets it be scored."""
        unscored = {found[0]: len(self.spell(found[:1])) for found in ids if found and not skip}
        lengths = [len(text.partition(END_OF_TEXT)[0]) for text in texts]
        lost = [unscored.get(found[0], 0) if found else 0 for found in ids]
        return np.maximum(0, np.array(lengths, dtype=np.int64) - np.array(lost, dtype=np.int64))

    def _read_batch(
        self, batch: list[Window], ids: list[list[int]], scored_to: list[int], skip: int, totals: _Totals
    ) -> None:
        """Add what the windows of a batch own to `totals`; `skip` counts the BOS in front, which is no text."""
        width = max(window.stop - window.start for window in batch)
        shape = (len(batch), width)
        ids_BT = torch.zeros(shape, dtype=torch.long)
        mask_BT = torch.zeros(shape, dtype=torch.long)
        scored_BT = torch.zeros(shape, dtype=torch.bool)
        pooled_BT = torch.zeros(shape, dtype=torch.bool)
        for row, window in enumerate(batch):
            size = window.stop - window.start
            ids_BT[row, :size] = torch.tensor(ids[window.text][window.start : window.stop])
            mask_BT[row, :size] = 1
            own = window.own - window.start
            # The first token of all has nothing before it: it is scored only where a BOS was put in front.
            scored_BT[row, max(own, 1) : max(0, min(size, scored_to[window.text] - window.start))] = True
            if self.reading.pool == "mean":
                pooled_BT[row, max(own, skip - window.start) : size] = True
            elif window.stop == len(ids[window.text]):
                pooled_BT[row, size - 1] = True
        out = self.model(
            input_ids=ids_BT.to(self.device),
            # Padding is on the right of a causal model, so the mask changes no number that is read; none is faster.
            attention_mask=None if bool(mask_BT.all()) else mask_BT.to(self.device),
            use_cache=False,
            output_hidden_states=True,
        )
        hidden_BTF = out.hidden_states[-1]
        if hidden_BTF.dtype != DTYPES[self.dtype]:
            raise RuntimeError(f"the judge computes in {hidden_BTF.dtype}, not in {self.dtype}")
        nll_BT = _next_token_nll(out.logits, ids_BT.to(self.device)).cpu().double()
        nll_B = torch.where(scored_BT, nll_BT, 0.0).sum(dim=1).numpy()
        pooled_BF = (hidden_BTF.double() * pooled_BT.to(self.device)[..., None]).sum(dim=1).cpu().numpy()
        for row, window in enumerate(batch):
            totals.nll_N[window.text] += nll_B[row]
            totals.tokens_N[window.text] += int(scored_BT[row].sum())
            totals.hidden_NF[window.text] += pooled_BF[row]
            totals.pooled_N[window.text] += int(pooled_BT[row].sum())


def _end_of_scored(found: list[int], skip: int, eos_id: int | None) -> int:
    """One past the last token that is scored: the first end-of-text is scored, what follows it is not."""
    if eos_id is None:
        return len(found)
    try:
        return found.index(eos_id, skip) + 1
    except ValueError:
        return len(found)


def _next_token_nll(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """(B, T) `-log p(token t | tokens before t)` in nats, at least in float32; position 0 is set to 0."""
    nll_BT = torch.zeros(ids_BT.shape, dtype=torch.promote_types(logits_BTV.dtype, torch.float32), device=ids_BT.device)
    rows = max(1, _LOGITS_AT_ONCE // max(1, logits_BTV.shape[1] * logits_BTV.shape[2]))
    for start in range(0, len(ids_BT), rows):
        logits = logits_BTV[start : start + rows, :-1].to(nll_BT.dtype)
        targets = ids_BT[start : start + rows, 1:]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        nll_BT[start : start + rows, 1:] = nll.view(targets.shape)
    return nll_BT


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 inside, and no autocast: the dtype that is named is the dtype that multiplies."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def heldout_texts(data: TokenData, rows: int) -> list[str]:
    """At most `rows` decoded rows of the test split, chosen at random."""
    return [data.decode(row) for row in data.some("test", rows).tolist()]


def pooled_ppl(scores: TextScores) -> float:
    """`exp(sum NLL / sum tokens)`; NaN where nothing was scored."""
    tokens = int(scores.tokens_N.sum())
    return float(np.exp(scores.nll_N.sum() / tokens)) if tokens else float("nan")


class CausalJudge(Judge):
    """A judge that is a causal language model: what it says once `prepare` has handed over its reader."""

    reader: CausalReader

    def _read_by(self, reader: CausalReader, data: TokenData) -> None:
        self.reader, self._data, self.ready = reader, data, True
        self.__dict__.pop("heldout_ppl", None)  # that of other data

    @cached_property
    def heldout_ppl(self) -> float:
        """Pooled perplexity on `heldout_rows` rows of the test split, decoded and read just as samples are."""
        data = self._prepared._data
        return pooled_ppl(self.score(heldout_texts(data, self.options.heldout_rows)))

    def score(self, texts: Sequence[str]) -> TextScores:
        """NLL in nats and scored tokens of each text."""
        return self._prepared.reader.read(texts)[0]

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """(N, F) float32: the last hidden states, pooled as the identity says."""
        return self._prepared.reader.read(texts)[1]
