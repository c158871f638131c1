"""What a user can get wrong on the command line: exit code 2, one line that names value and way out, nothing lost."""

from __future__ import annotations

import gzip
import shutil
import socket
from pathlib import Path

import pytest

from harness.jobs.locks import folder_lock
from tests.kit.study_kit import command, invoke, snapshot


@pytest.fixture(scope="module")
def scene(finished, tmp_path_factory) -> Path:
    """A folder with a finished study in `runs`, and things that are wrong beside it."""
    root = tmp_path_factory.mktemp("bad")
    shutil.copytree(finished.folder, root / "runs" / "smoke")
    (root / "file").write_text("a file, not a folder")
    (root / "empty.txt").write_text("")
    (root / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (root / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 100)
    (root / "cut.txt.gz").write_bytes(gzip.compress(b"hello there " * 1000)[:40])
    (root / "other.jsonl").write_text('{"body": "hello"}\n' * 100)
    (root / "short.txt").write_text("a b\n" * 40)
    (root / "few.txt").write_text("hello there my friend\n" * 300)
    configs = {
        "headless/study/mine": "study: {name: mine}\n",
        "strange/study/mine": "# @package _global_\ndefaults:\n  - few_step\nstudy: {name: mine, nfee: [2]}\n",
        "lost/study/mine": "# @package _global_\ndefaults:\n  - few_stepp\nstudy: {name: mine}\n",
        "nowhere/study/mine": "# @package _global_\ndefaults:\n  - few_step\n  - /method@methods.x: mdlmm\n",
        "class/method/mine": "_target_: baselines.mdlm.MDLMS\n",
        "module/method/mine": "_target_: baseline.mdlm.MDLM\n",
        "bare/method/mine": "_target_: MDLM\n",
        "alien/method/mine": "_target_: pathlib.Path\n",
        "none/method/mine": "width_factor: 2.0\n",
        "broken/method/mine": "_target_: [a: b\n",
        "list/method/mine": "- a\n",
        "typo/method/mine": "_target_: baselines.mdlm.MDLM\nwidth_facto: 2.0\n",
    }
    for name, text in configs.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _refused(scene: Path, finished, arguments: list[str], *fragments: str) -> None:
    """Run beside the finished study and check everything that holds for any refusal."""
    before = snapshot(scene / "runs")
    given = [word.replace("SCENE", str(scene)) for word in arguments]
    said = invoke(command(finished.corpus, scene / "runs", finished.cache, *given))
    assert said.code == 2, said.err
    assert said.error.startswith("error: "), said.err
    assert said.err.count("error:") == 1 and "Traceback" not in said.err + said.out
    # Only progress may come before.
    assert all(line.startswith(("study smoke: reading data", "error: ")) for line in said.err.strip().splitlines())
    for fragment in fragments:
        assert fragment.replace("SCENE", str(scene)) in said.error
    assert snapshot(scene / "runs") == before


UNKNOWN = [
    (["study=smok"], "study=smok", "'smoke'"),
    (["only=[mdlmm]"], "only=mdlmm", "'mdlm'"),
    (["+method@methods.x=mdml"], "method=mdml", "'mdlm'"),
    (["data=txt"], "data=txt", "'text'"),
    (["scale=nanoo"], "scale=nanoo", "'nano'"),
    (["judge=pretrainedd"], "judge=pretrainedd", "'pretrained'"),
    (["tokenizer=character"], "tokenizer=character", "'characters'"),
    (["runs_dirr=x"], "'runs_dirr'", "'runs_dir'"),
    (["scale.widht=32"], "'scale.widht'", "'scale.width'"),
    (["methods.seq.slotz=4"], "'methods.seq.slotz'", "'methods.seq.slots'"),
    (["methods.sec.slots=4"], "'methods.sec.slots'", "'methods.seq.slots'"),
    (["+scale.foo=1"], "scale.foo", "nothing reads this key"),
    (["~methods.seq", "only=[seq]"], "only=seq", "choose one of"),
    (["tokenizer.alphabet=tex8"], "alphabet=tex8", "'text8'"),
    (["tokenizer=pretrained", "tokenizer.name=./nope"], "tokenizer.name=./nope", "no such folder"),
    (["compute.device=cuda:97"], "compute.device=cuda:97", "choose"),
    (["compute.device=tpu"], "compute.device=tpu", "choose auto, cpu, cuda"),
    (["compute.precision=float16"], "float16", "'bfloat16'"),
    (["compute.compile=yes"], "compute.compile=yes", "choose one of auto, false, true"),
    (["methods.fuji.prediction=foo"], "methods.fuji.prediction=foo", "choose one of v, x0"),
    (["methods.mdlm.schedule=linaer"], "methods.mdlm.schedule=linaer", "'linear'"),
    (["train.decay=cos"], "train.decay=cos", "'cosine'"),
]
TYPES = [
    (["scale.width=abc"], "scale.width=abc", "Integer"),
    (["scale.width=1.5"], "scale.width=1.5", "Integer"),
    (["scale.lr=fast"], "scale.lr=fast", "Float"),
    (["plan=maybe"], "plan=maybe", "bool"),
    (["study.nfe=4"], "study.nfe=4", "[a,b]"),
    (["study.nfe=[a]"], "study.nfe[0]", "'a'", "Integer"),
    (["only=mdlm"], "only=mdlm", "[a,b]"),
    (["methods.seq=3"], "methods.seq=3", "method@methods.seq=NAME"),
    (["+metrics.x=1"], "metrics.x=1", "metric@metrics.x=NAME"),
    (["study.nfe=2,4"], "study.nfe=2,4", "[a,b]"),
]
RANGES = [
    (["study.nfe=[-1]"], "study.nfe=-1", "nearest is 1"),
    (["study.nfe=[0]"], "study.nfe=0", "nearest is 1"),
    (["study.nfe=[2,2]"], "study.nfe=[2, 2]", "twice"),
    (["study.nfe=[]"], "study.nfe=[]", "one value at least"),
    (["study.nfe=[1,2]"], "nfe=1 cannot be met by SEQ", "use 2 or more"),
    (["study.temperatures=[0]"], "study.temperatures=0", "above 0"),
    (["study.temperatures=[1.0,1.0]"], "study.temperatures=[1.0, 1.0]", "twice"),
    (["study.seeds=[0,0]"], "study.seeds=[0, 0]", "twice"),
    (["study.seeds=[-1]"], "study.seeds=-1", "0 or more"),
    (["study.samples=4"], "study.samples=4", "must be 8 or more"),
    (["study.samples=9999"], "study.samples=9999", "held-out sequences", "or less"),
    (["study.name=../out"], "study.name=../out", "letters, digits"),
    (["scale.width=30"], "scale.width=30", "2 x heads = 4", "nearest is 32"),
    (["scale.steps=0"], "scale.steps=0", "1 or more"),
    (["scale.lr=nan"], "scale.lr=nan", "above 0"),
    (["scale.mlp_ratio=0.001"], "scale.mlp_ratio=0.001", "4.0"),
    (["train.accumulate=3"], "train.accumulate=3", "divide scale.batch = 16"),
    (["train.beta2=1"], "train.beta2=1", "below 1"),
    (["judge.width=33"], "width=33", "use width=32"),
    (["methods.bigram.order=99"], "order=99", "choose 1 to 9"),
    (["methods.seq.encoder_noise=0"], "encoder_noise=0", "above 0"),
    (["methods.seq.slots=0"], "methods.seq.slots=0", "between 1 and 4096"),
    (["methods.seq.prior_depth=0"], "methods.seq.prior_depth=0", "between"),
    (["methods.seq.samplers.diffusion.latent_share=2"], "methods.seq.samplers.diffusion.latent_share=2", "between"),
    (["methods.mdlm.width_factor=-1"], "methods.mdlm.width_factor=-1", "between"),
]
FILES = [
    (["data.path=SCENE/fewer.txt"], "SCENE/fewer.txt does not exist", "'few.txt'"),
    (["data.path=SCENE/empty.txt"], "empty.txt is empty", "give a file with text"),
    (["data.path=SCENE/binary.txt"], "binary.txt is not text", "NUL at byte 0"),
    (["data.path=SCENE/latin.txt"], "latin.txt is not UTF-8", "iconv"),
    (["data.path=SCENE/cut.txt.gz"], "cut.txt.gz is not a whole gzip file", "copy it again"),
    (["data.path=SCENE/other.jsonl"], "data.field=text", "body"),
    (["data.path=SCENE/short.txt"], "length=32", "use length <= 7"),
    (["data.path=SCENE/few.txt"], "study.samples=24", "use study.samples=10 or less"),
    (["data.path=???"], "data.path has no value", "data.path=..."),
    (["runs_dir=SCENE/file"], "runs_dir=SCENE/file", "choose another folder"),
    (["runs_dir=/proc/nowhere"], "runs_dir=/proc/nowhere", "choose another folder"),
    (["cache_dir=SCENE/file"], "SCENE/file", "choose a cache folder"),
    (["tracking.enabled=true", "tracking.uri=file:SCENE/mlruns"], "file:SCENE/mlruns", "sqlite:///"),
    (["tracking.enabled=true", "tracking.uri=postgress://u:secret@h/d"], "'postgress'", "'postgresql'"),
]
CONFIGS = [
    (["--config-dir", "SCENE/nothing"], "SCENE/nothing", "does not exist"),
    (["--config-dir", "SCENE/configs/headless"], "headless/study/mine.yaml", "# @package _global_"),
    (["--config-dir", "SCENE/configs/strange", "study=mine"], "nfee", "'nfe'"),
    (["--config-dir", "SCENE/configs/lost", "study=mine"], "few_stepp", "'few_step'"),
    (["--config-dir", "SCENE/configs/nowhere", "study=mine"], "mdlmm", "'mdlm'"),
    (["--config-dir", "SCENE/configs/class"], "baselines.mdlm.MDLMS", "'MDLM'"),
    (["--config-dir", "SCENE/configs/module"], "baseline.mdlm.MDLM", "cannot import"),
    (["--config-dir", "SCENE/configs/bare"], "_target_=MDLM", "package.module.Class"),
    (["--config-dir", "SCENE/configs/alien"], "pathlib.Path", "Options"),
    (["--config-dir", "SCENE/configs/none"], "none/method/mine.yaml", "_target_: package.module.Class"),
    (["--config-dir", "SCENE/configs/broken"], "broken/method/mine.yaml", "not readable as YAML"),
    (["--config-dir", "SCENE/configs/list"], "list/method/mine.yaml", "a mapping of keys to values"),
    (["--config-dir", "SCENE/configs/typo"], "width_facto", "'width_factor'"),
]
ARGUMENTS = [
    (["--frobnicate"], "--frobnicate", "--help"),
    (["--config-dir"], "--config-dir needs a value", "--config-dir DIR"),
    (["--cfg", "hydra"], "--cfg hydra", "--cfg job"),
    (["scale.width"], "'scale.width'", "write key=value"),
    (["study.nfe=[2,4"], "'study.nfe=[2,4'", "quote"),
]


def _id(case) -> str:
    return " ".join(case[0]).replace("SCENE/", "")


@pytest.mark.parametrize("case", [*UNKNOWN, *TYPES, *RANGES, *FILES, *CONFIGS, *ARGUMENTS], ids=_id)
def test_bad_input_is_refused_in_one_line_and_nothing_is_lost(case, scene, finished, monkeypatch):
    monkeypatch.setattr("harness.study.runner.work_on", lambda *_: pytest.fail("the work was begun"))
    arguments, *fragments = case
    _refused(scene, finished, arguments, *fragments)


def test_forgotten_path_of_local_text(scene):
    said = invoke(["study=smoke", "data=text", f"runs_dir={scene / 'runs'}"])
    assert said.code == 2 and said.error == "error: data.path has no value; give it as data.path=..."


def test_server_that_is_not_there(scene, finished):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    # The configuration differs from that of the finished study, whose results must still stay where they are.
    arguments = ["tracking.enabled=true", f"tracking.uri={uri}", "study.nfe=[2]"]
    _refused(scene, finished, arguments, uri, "connection refused", "tracking.enabled=false")


def test_study_that_runs_already(scene, finished):
    with folder_lock(scene / "runs" / "smoke"):
        _refused(scene, finished, [], "smoke is in use by process", "wait for it")


def test_state_that_is_not_json(scene, finished):
    path = scene / "runs" / "smoke" / "state.json"
    kept = path.read_text()
    path.write_text(kept[: len(kept) // 2])
    try:
        said = invoke(command(finished.corpus, scene / "runs", finished.cache))
        assert said.code == 0 and "state.json is damaged (it is not JSON" in said.err
    finally:
        path.write_text(kept)
