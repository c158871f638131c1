"""A causal language model for a judge, its weights made sure of; see `harness.nn.pretrained`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.nn.pretrained import has_weights, load_checked, quiet_transformers, sha256_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["KEY", "has_weights", "load_causal_model", "quiet_transformers", "sha256_of_weights"]

KEY = "judge model"


def load_causal_model(source: str, dtype: str, device: str, **where: Any) -> PreTrainedModel:
    """`source` (a folder or a hub name) as a causal language model in evaluation mode; see `load_checked` for errors."""
    from transformers import AutoModelForCausalLM

    model = load_checked(AutoModelForCausalLM, source, dtype, KEY, "use judge=trained", **where)
    return model.to(device)  # type: ignore[arg-type]  # its decorator hides `self`
