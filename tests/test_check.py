"""`harness.check`: what keeps its contract passes, and each promise that is broken is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import check
from tests.kit.toys import one_thread  # noqa: F401

BROKEN = [
    ("method", "Untitled", "Untitled.title is empty"),
    ("method", "HalfTrained", "shares of the stages sum to 0.5"),
    ("method", "Unreached", "the loss does not reach spare.weight, which stage all trains"),
    ("method", "GlobalChance", "changes with torch's global seed"),
    ("method", "HalfBound", "the bound is torch.float32"),
    ("method", "Forgetful", "not all that it reads is in the state dict"),
    ("method", "Crashing", "IndexError: list index out of range (broken.py, line "),
    ("method", "Unbuilt", "RuntimeError: no such thing (broken.py, line "),
    ("sampler", "OneMore", "reports 1 calls at NFE 1; its networks saw 2"),
    ("sampler", "Masked", "left ids outside its vocabulary"),
    ("sampler", "Silent", "says neither budget nor title: no"),
    ("sampler", "Constant", "12 sequences at NFE 1 are 1 different ones"),
    ("sampler", "Dice", "draws change with a global seed; use the generator"),
    ("sampler", "Anything", "takes a method of a class that is not in `methods`"),
    ("metric", "NoError", "the first column, has no standard error"),
    ("metric", "Noisy", "scored twice, the same samples have two scores"),
    ("metric", "Blind", "other samples have the same scores"),
    ("metric", "Undefined", "Undefined lacks columns, definition or version"),
]


def checked(words: list[str], capsys) -> tuple[int, str, str]:
    code = check.main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("group", "name", "reason"), BROKEN)
def test_what_is_broken_is_named(group, name, reason, tmp_path: Path, capsys):
    (tmp_path / group).mkdir()
    more = "samplers: {ancestral: {}}\n" if group == "method" else ""
    (tmp_path / group / "mine.yaml").write_text(f"_target_: tests.kit.broken.{name}\n{more}", encoding="utf-8")
    words = [f"{group}=mine", *(["method=mdlm"] if group == "sampler" else [])]
    code, out, err = checked(["--config-dir", str(tmp_path), *words], capsys)
    assert code == 1 and "FAILED" in out and reason in err
    assert all(line.startswith("failed: ") for line in err.splitlines()), "each reason is one line"


def test_what_is_whole_passes(capsys):
    code, out, err = checked(["method=seq", "method.one_call_share=0.3", "sampler=one_call", "metric=entropy"], capsys)
    titles = [line for line in out.splitlines() if not line.startswith("  ")]
    assert (code, err) == (0, "") and titles == ["metric entropy", "method seq", "sampler one_call on method seq"]
    assert all(len(line) < 80 for line in out.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=mdml"], "method=mdml: no such method; did you mean 'mdlm'?"),
        (
            ["judge=tiny"],
            "judge=tiny: write method=NAME, sampler=NAME or metric=NAME; choose one of method, metric, sampler",
        ),
        (["+method=mdlm"], "+method=mdlm: write method=NAME"),
        (["method.loss=x"], "method.loss=x: is an option of a method, and none is named; write method=NAME too"),
        (["method=mdlm", "method.los=x"], "Key 'los' not in 'MDLMOptions'; did you mean 'loss'?"),
        (["method=seq", "sampler=ancestral"], "sampler Ancestral draws from MaskedModel, not from SEQ"),
        (["sampler=one_call"], "choose one_call_share above 0, such as 0.3"),
        (["--plan"], "unknown option '--plan'"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys):
    code, out, err = checked(words, capsys)
    assert code == 2 and said in err and err.count("\n") == 1 and "Traceback" not in err
