"""What is wrong with a configuration in the words of Hydra and OmegaConf, made into one line that people can act on."""

from __future__ import annotations

import difflib

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from harness.config.registry import Entry
from harness.errors import nearest


def one_line(error: Exception) -> str:
    """Hydra and OmegaConf put the reason on the first lines and the key on a later one; people need both on one."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    if cause is not None and isinstance(cause, OmegaConfBaseException):
        text = f"{text}\n{cause}"
    lines = [line.strip() for line in text.partition("\nConfig search path:")[0].splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    noise = ("full_key:", "object_type=", "reference_type=", "See https")
    kept = [line for line in lines if not line.startswith(noise) and "$VALUE" not in line]
    message = "; ".join(dict.fromkeys(kept))
    if "is not a ListConfig" in message:
        message += " Lists are written [a,b]."
    unknown = next((e for e in (cause, error) if isinstance(e, ConfigKeyError) and e.parent_node is not None), None)
    if unknown is not None:
        message += nearest(str(unknown.key), map(str, unknown.parent_node))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        message += nearest(name, [c.removesuffix(".yaml") for c in ConfigStore.instance().list(group)])
    return f"{key}: {message}" if key and key not in message else message


def nearest_key(key: str, known: list[str], entries: dict[str, dict[str, Entry]]) -> str:
    """Nearest among the keys, by full name first and then by the last part alone."""
    hint = nearest(key, [*known, *entries])
    if hint.startswith("; did"):
        return hint
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], tails, n=1, cutoff=0.75)
    if close:
        return f"; did you mean '{tails[close[0]]}'?"
    return "; --help lists the groups and --cfg job every key"
