"""A study with two tasks for the tests of studies with tasks; and a method that is a floor, one that is choosy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import BudgetError
from tests.kit.study_plugins import YAML, Independent, Positions, write_configs


class Perfect(Positions):
    """Nothing to train, run at all budgets, not compared."""

    title = "Perfect"
    role = "floor"

    def stages(self) -> tuple:
        return ()


class Choosy(Independent):
    """Two calls before anything can be drawn."""

    @property
    def title(self) -> str:
        return "Choosy"

    def check_budget(self, nfe: int) -> None:
        super().check_budget(nfe)
        if nfe < 3:
            raise BudgetError(f"nfe={nfe} cannot be met by {self.title}: use 3 or more")


STUDY = YAML["study/toy"].replace(
    "study: {name: toy,",
    "study: {name: toys, question: how far, tasks: {short: [scale.length=9], noisy: [data.noise=0.5, scale.steps=20]},",
)
FILES = {
    "study/toys": STUDY,
    "method/perfect": "# The floor\n_target_: tests.kit.suite_kit.Perfect\nsamplers: {independent: {}}\n",
    "method/choosy": "# Refuses a budget\n_target_: tests.kit.study_plugins.Positions\nsamplers: {choosy: {}}\n",
    "sampler/choosy": "# Refuses a budget\n_target_: tests.kit.suite_kit.Choosy\n",
}
FLOOR = "+method@methods.perfect=perfect"


def suite_arguments(root: Path, *more: str) -> list[str]:
    """The command line of the study with tasks, its runs and cache below `root`."""
    config = write_configs(root / "configs")[:2]
    for name, text in FILES.items():
        (root / "configs" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return [*config, "study=toys", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}", *more]
