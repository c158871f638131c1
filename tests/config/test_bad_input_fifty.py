"""Fifty more inputs that somebody gets wrong: one line that says what and why, exit code 2, and nothing lost or begun."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from harness import check, run, submit, tune
from tests.kit.study_kit import Said, command, snapshot, write_corpus

_STUDY = "# @package _global_\ndefaults:\n  - few_step\nstudy: {name: mine}\n"
_METHOD = "samplers: {ancestral: {}}\n_target_: "
FILES = {
    "utf16.txt": "hello there ".encode("utf-16") * 500,
    "blank.txt": b" \n" * 500,
    "numbers.jsonl": b'{"text": 5}\n' * 50,
    "cut.jsonl": b'{"text": "hello there"}\n' * 50 + b'{"text": "hel',
    "table.csv": b"a,b\n" * 50,
    "plain.txt.gz": b"hello there\n" * 50,
    "several/train.txt": b"hello there\n" * 50,
    "several/train.jsonl": b'{"text": "a"}\n',
    "heavy.txt": b"hello there my friend\n" * 50,
    "list.yaml": b"- a\n",
    "cut.yaml": b"overrides: [a: ",
    "other.yaml": b"overrides: [scale.widht=3]\n",
    "c/circle/study/mine.yaml": b"# @package _global_\ndefaults:\n  - mine\n",
    "c/section/study/mine.yaml": (_STUDY + "scale: 5\n").encode(),
    "c/refers/study/mine.yaml": _STUDY.replace("name: mine", "name: '${study.nme}'").encode(),
    "c/empty/study/mine.yaml": (_STUDY + "methods: {mdlm: null}\n").encode(),
    "c/bytes/study/mine.yaml": b"# @package _global_\n\xff\xfe\n",
    "c/tab/study/mine.yaml": b"# @package _global_\n\tdefaults:\n",
    "c/two/study/mine.yaml": b"# @package _global_\n---\na: 1\n---\nb: 2\n",
    "c/judge/study/mine.yaml": _STUDY.replace("few_step\n", "few_step\n  - override /judge: nobody\n").encode(),
    "c/number/method/mine.yaml": b"_target_: 5\n",
    "c/sampler/method/mine.yaml": b"_target_: baselines.mdlm.MDLM\nsamplers: {ancestral: 3}\n",
    "c/raises/method/mine.yaml": (_METHOD + "bad_module_that_raises.Mine\n").encode(),
    "c/syntax/method/mine.yaml": (_METHOD + "bad_module_of_no_python.Mine\n").encode(),
    "bad_module_that_raises.py": b"limit = 1 / 0\n",
    "bad_module_of_no_python.py": b"def f(:\n",
}

_MINE = ["study=mine"]
_ADDED = ["+method@methods.mine=mine"]
_LONG = "d" * 300
RUN = [
    (["study.nfe=[1e3]"], "study.nfe[0]: ", "could not be converted to Integer"),
    (["study.nfe=[null]"], "study.nfe[0]: ", "NoneType"),
    (["study.samples=1e400"], "study.samples=1e400", "Integer"),
    (["study.seeds=[]"], "study.seeds=[]: must have one value at least"),
    (["study.temperatures=[inf]"], "study.temperatures=inf: must be finite, and above 0"),
    (["scale.lr=inf"], "scale.lr=inf: must be finite, and above 0; the default is 0.003"),
    (["scale.length=100000000"], "length=100000000 is longer than the train split", "use length <= "),
    (["scale.width=100000000000"], "its weights do not fit into memory with scale.width=100000000000"),
    (["study.nfe_of.mdlm=[2]"], "unknown key 'study.nfe_of.mdlm'; a new budget is written +study.nfe_of.mdlm=[2]"),
    (["only=[mdlm,mdlm]"], "only=mdlm: is named twice"),
    (["only=[mdlm/]"], "only=mdlm/: mdlm has no such sampler; choose one of ancestral"),
    (["only=[/]"], "only=/: is no method of this study; choose one of ar, "),
    (["redo=[nobody]"], "redo=nobody: is no method or method/sampler of this study"),
    (["tracking=false"], "tracking=false", "not a subclass of TrackingConfig"),
    (
        ["tracking.enabled=true", "tracking.uri=sqlite:////proc/a.db"],
        "sqlite:////proc/a.db cannot be used",
        "No such file",
    ),
    (["data.path=HERE/utf16.txt"], "utf16.txt is not text: NUL at byte 3; give UTF-8 text"),
    (["data.path=HERE/blank.txt"], "blank.txt is empty; give a file with text"),
    (["data.path=HERE/numbers.jsonl"], "numbers.jsonl line 1 has no text under data.field=text"),
    (["data.path=HERE/cut.jsonl"], "cut.jsonl line 51 is not JSON"),
    (["data.path=HERE/table.csv"], "table.csv has an unknown ending; choose one of .jsonl, "),
    (["data.path=HERE/plain.txt.gz"], "plain.txt.gz is not a whole gzip file", "or unpack it"),
    (["data.path=HERE/several"], "has more than one train file (train.jsonl, train.txt); keep one"),
    (["data.path=HERE/loop"], "HERE/loop is a link that leads nowhere; give a file or folder"),
    (["data.path=https://example.org/books.txt"], "is an address; download it and give the file"),
    (["data.path=[a,b]"], "data.path=[a,b]", "Cannot convert 'list' to string"),
    (["data.valid_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on; use 0.05 and 0.05"),
    (["runs_dir="], "runs_dir=: is empty; name a folder"),
    (["cache_dir=' '"], "cache_dir= : is empty; name a folder"),
    (["runs_dir=HERE/loop"], "runs_dir='HERE/loop': is no path (Symlink loop", "choose another folder"),
    ([f"runs_dir={_LONG}"], "ddd': is no path (File name too long); choose another folder"),
    (["runs_dir='a\x00b'"], "runs_dir='a\\x00b': is no path (embedded null byte); choose another folder"),
    (["methods.mdlm.samplers.codes={}"], "sampler Codes draws from SEQDiscrete, not from MDLM"),
    (["+methods.x={_target_: os.system}"], "_target_=os.system: has no dataclass 'Options'"),
    (["methods.seq.one_call_share=0.99"], "leave no step for the tokens; choose shares that sum to less than 1"),
    (["metrics.mauve.buckets=100000"], "mauve with buckets=100000 needs at least as many texts a side, got n=24"),
    (["scale.width=${nowhere}"], "scale.width: Interpolation key 'nowhere' not found"),
    (["scale.width=${scale.width}"], "scale.width: Recursive interpolation detected"),
    (["study.nfe=range(1,3)"], "lists are written [a,b], sweeps are for studies"),
    (["+best=HERE/list.yaml"], "list.yaml: has no list 'overrides' of key=value"),
    (["+best=HERE/cut.yaml"], "cut.yaml: is not YAML; give the best.yaml that harness.tune wrote"),
    (
        ["+best=HERE/other.yaml"],
        "unknown key 'scale.widht'; did you mean 'scale.width'? (set by +best=HERE/other.yaml)",
    ),
    (["--config-dir", ""], "--config-dir needs a value, for example --config-dir DIR"),
    (["--config-dir", "HERE/c/circle", *_MINE], "study=mine: its list 'defaults' leads back to itself"),
    (["--config-dir", "HERE/c/section", *_MINE], "study/mine", "int is not a subclass of ScaleConfig"),
    (["--config-dir", "HERE/c/refers", *_MINE], "study.name: Interpolation key 'study.nme' not found"),
    (
        ["--config-dir", "HERE/c/empty", *_MINE],
        "methods.mdlm=None: names no class; choose one with method@methods.mdlm",
    ),
    (["--config-dir", "HERE/c/bytes", *_MINE], "bytes/study/mine.yaml: not readable as YAML", "can't decode byte"),
    (["--config-dir", "HERE/c/tab", *_MINE], "tab/study/mine.yaml: not readable as YAML", "line 2"),
    (["--config-dir", "HERE/c/two", *_MINE], "two/study/mine.yaml: not readable as YAML", "another document"),
    (["--config-dir", "HERE/c/judge", *_MINE], "Could not find 'judge/nobody'", "choose one of"),
    (["--config-dir", "HERE/c/number", *_ADDED], "_target_=5: not the dotted path of a class"),
    (["--config-dir", "HERE/c/sampler", *_ADDED], "ancestral=3: is a mapping of options"),
    (
        ["--config-dir", "HERE/c/raises", *_ADDED],
        "ZeroDivisionError: division by zero (bad_module_that_raises.py, line 1)",
    ),
    (["--config-dir", "HERE/c/syntax", *_ADDED], "SyntaxError: invalid syntax (bad_module_of_no_python.py, line 1)"),
]
SEARCH = ["study=exact", "only_tasks=[hmm]", "tune=latent", "runs_dir=HERE/runs", "cache_dir=HERE/cache"]
OTHERS = [
    (tune, [*SEARCH, "tune.method=seq/nobody"], "tune.method=seq/nobody: is no sampler of this method"),
    (tune, [*SEARCH, "tune.objectives.quality.column=nobody"], "quality.column=nobody: is no column of this study"),
    (tune, [*SEARCH, "tune.space.slots={low: a, high: b}"], "tune.space.slots={low: a, high: b}", "converted to Float"),
    (tune, [*SEARCH, "~tune.objectives.quality"], "tune.objectives={}: names nothing that is to be better"),
    (tune, [*SEARCH, "tune.storage=postgresql://"], "tune.storage=postgresql://: names no database"),
    (submit, ["run"], "there is no sbatch here; use a login node of the cluster"),
    (submit, ["tune", "study=exact"], "there is no sbatch here"),
    (check, ["method=mdlm", "method.width_factor=x"], "Value 'x' of type 'str' could not be converted to Float"),
]
VARIABLES = [
    ("nonsense://x", "MLFLOW_TRACKING_URI=nonsense://x has the unknown scheme 'nonsense'"),
    ("ftp://me:secret@host", "MLFLOW_TRACKING_URI=ftp://***@host has the unknown scheme 'ftp'"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with all that is wrong, and results in `runs` that must stay as they are."""
    root = tmp_path_factory.mktemp("fifty")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "loop").symlink_to(root / "loop")
    write_corpus(root / "words.txt")
    (root / "runs" / "smoke").mkdir(parents=True)
    (root / "runs" / "smoke" / "report.md").write_text("what somebody has found")
    return root


@pytest.fixture(autouse=True)
def nothing_begins(here, monkeypatch) -> None:
    monkeypatch.setattr("harness.study.runner.work_on", lambda *_: pytest.fail("the work was begun"))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.chdir(here)


def _refused(here: Path, module, arguments: list[str], *fragments: str) -> None:
    before, names = snapshot(here / "runs"), set(here.iterdir())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        said = Said(
            module.main([word.replace("HERE", str(here)) for word in arguments]), out.getvalue(), err.getvalue()
        )
    assert said.code == 2, said.err
    assert said.error.startswith("error: ") and said.err.count("\nerror: ") == (said.err != f"{said.error}\n"), said.err
    assert "Traceback" not in said.err + said.out and "secret" not in said.err + said.out
    for fragment in fragments:
        assert fragment.replace("HERE", str(here)) in said.error
    assert snapshot(here / "runs") == before and set(here.iterdir()) <= {*names, here / "cache"}


@pytest.mark.parametrize("case", RUN, ids=lambda case: " ".join(case[0])[:50].replace("\x00", "0"))
def test_studies(case, here):
    arguments, *fragments = case
    _refused(here, run, command(here / "words.txt", here / "runs", here / "cache", *arguments), *fragments)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: " ".join(case[1][-1:]))
def test_searches_jobs_and_checks(case, here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    module, arguments, *fragments = case
    _refused(here, module, arguments, *fragments)


@pytest.mark.parametrize(("value", "fragment"), VARIABLES)
def test_a_variable_of_the_environment(value, fragment, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    arguments = command(here / "words.txt", here / "runs", here / "cache", "tracking.enabled=true")
    _refused(here, run, arguments, fragment)


def test_there_are_fifty():
    assert len(RUN) + len(OTHERS) + len(VARIABLES) >= 50
