"""Models of `transformers`, from a folder or the hub, with their weights made sure of: all present, in a named dtype, hashed.

No code of a repository is run, and weights are read from safetensors alone. `key` is what the user set, and begins every
error: `key=value reason; instead`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBE_TIMEOUT_S = 5.0
#: Everything that decides how a tokenizer works and how weights are read, and nothing that holds weights or code.
_FILES = (
    "config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt "
    "merges.txt *.model *.tiktoken"
)
READING_FILES = tuple(_FILES.split())


def locate(source: str, revision: str | None, key: str, instead: str) -> dict[str, Any]:
    """Where `from_pretrained(source, ...)` shall look: its keyword arguments `local_files_only` and `revision`.

    A folder has to hold a configuration and safetensors; a name is looked for on this disk, then on the hub, whose commit
    is returned as `revision`. Raises `UserError` for a source that is not there.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{key}={source} has no config.json, so it is no model folder; {instead}")
        if not has_weights(folder):
            raise UserError(f"{key}={source} has a config but no *.safetensors weights; {instead}")
        return {"local_files_only": True}
    beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
    close = nearest(folder.name, beside)
    is_path = folder.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if is_path or (len(folder.parts) > 1 and "did you mean" in close):
        raise UserError(f"{key}={source} is not a folder{close if 'did you mean' in close else '; ' + instead}")
    known = _cached_revision(source, revision)
    if known is not None:
        return {"local_files_only": True, "revision": known}
    return {"local_files_only": False, "revision": _online_revision(source, revision, key, instead)}


def in_package(package: str, name: str, key: str, install: str) -> Path:
    """A file or folder of an installed package, which is looked for and not imported; `UserError` where it is not there."""
    spec = importlib.util.find_spec(package)
    path = Path(next(iter(spec.submodule_search_locations or [""])), name) if spec else None
    if path is None or not path.exists():
        raise UserError(f"{key} {name} is in the package {package}, which is not installed; {install}")
    return path


def load_checked(
    auto: Any, source: str, dtype: str, key: str, instead: str, unused: tuple[str, ...] = (), **where: Any
) -> PreTrainedModel:
    """`auto.from_pretrained(source)` in evaluation mode, from safetensors only; `where` is what `locate` says.

    Raises `UserError` where a weight that the network needs is not in the file (it would be random); errors of
    `transformers` pass through as they are. Weights that begin with one of `unused` may be absent.
    """
    with quiet_transformers():
        model, info = auto.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **where,
        )
    absent = sorted(str(name) for name in {*info.get("missing_keys", ()), *info.get("mismatched_keys", ())})
    absent = [name for name in absent if not name.startswith(unused)] if unused else absent
    if absent:
        raise UserError(
            f"{key}={source} lacks {len(absent)} of its weights ({', '.join(absent[:3])}, ...); "
            f"they would be random: use a complete checkpoint or {instead.removeprefix('use ').split(',')[0]}"
        )
    return model.eval()


@contextlib.contextmanager
def guarded(key: str, source: str, instead: str) -> Iterator[None]:
    """What is raised inside as one line; transformers, the hub and safetensors raise many kinds."""
    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{key}={source} cannot be loaded ({first_line(error)}); {instead}") from error


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_reading(folder: Path) -> str:
    """SHA-256 (hex) over names and content of a folder's `READING_FILES`; empty where it has none."""
    files = sorted({path for pattern in READING_FILES for path in folder.glob(pattern) if path.is_file()})
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""


def need_table(config: Any, tokenizer: Any, key: str, source: str) -> None:
    """Raise `UserError` where the tokenizer has ids that the model of this configuration has no row for."""
    rows = getattr(config.get_text_config(), "vocab_size", None)
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if rows is not None and ids > rows:
        raise UserError(
            f"{key}={source}: its tokenizer has ids up to {ids - 1}, and its model's table {rows} rows, for ids up to "
            f"{rows - 1}; use a model with its own tokenizer"
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of `transformers` inside: what matters is checked and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors."""
    return any(folder.glob("*.safetensors"))


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


def _cached_revision(name: str, revision: str | None) -> str | None:
    """The commit of a complete copy in the hub's cache on this disk, or None."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not there, or not a repository's name: found out online
        return None
    return snapshot.name if (snapshot / "config.json").is_file() and has_weights(snapshot) else None


def _online_revision(name: str, revision: str | None, key: str, instead: str) -> str:
    """The hub's commit, asked for once with a time limit: the libraries' own retries take half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_PROBE_TIMEOUT_S).sha
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{key}={name} is neither a folder nor a model on the hub; {instead}") from error
    except NoRevision as error:
        raise UserError(f"{key.split()[0]} revision={revision} of {name} is not on the hub; use main") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{key}={name} is not on this disk and the hub is switched off; {instead}") from error
    except Exception as error:  # no network: kinds differ between versions of the hub's client
        raise UserError(
            f"{key}={name} is not on this disk and the hub cannot be reached ({first_line(error)}); {instead}"
        ) from error
    if not commit:
        raise UserError(f"{key}={name} has no commit on the hub; {instead}")
    return commit
