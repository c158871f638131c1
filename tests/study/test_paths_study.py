"""The study of paths: one network is trained, and each path draws from it."""

import pytest

from harness.config.load import load
from harness.store import read_json
from harness.study.cells import Cell, make_cells
from harness.study.session import Session
from harness.study.steps import sample_cell, train_cell
from harness.training.checkpoint import load_tensors
from tests.kit.toys import one_thread  # noqa: F401

SAMPLERS = ("path", "lead", "offset", "bent", "latent_first", "encoder")
TINY = [
    "study=paths", "scale.width=16", "scale.depth=1", "scale.heads=2", "scale.length=8", "scale.steps=6",
    "scale.batch=8", "study.samples=8", "study.bound_sequences=8", "study.bound_draws=1", "study.nfe=[1,2]",
    "study.seeds=[0]", "train.validations=1", "train.valid_sequences=8", "compute.device=cpu",
    "compute.precision=float32", "compute.workers=1", "tracking.enabled=false", "data.train=64",
    "data.heldout=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("paths")
    return [*TINY, f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}"]


def cells_of(session: Session) -> dict[str, Cell]:
    """The cells of the network on independent times, by sampler; that of the other one as "own"."""
    return {cell.sampler if cell.method == "fuji_independent" else cell.method: cell for cell in make_cells(session)}


def test_paths_share_their_weights_and_nothing_else(arguments):
    cells = cells_of(Session(load(arguments).tree))
    shared = [cells[name] for name in SAMPLERS]
    assert len({cell.weights for cell in shared}) == 1
    assert len({cell.key for cell in shared}) == len(SAMPLERS)
    assert cells["fuji"].weights != shared[0].weights
    assert [cell.sampler for cell in shared if cell.role == "probe"] == ["encoder"]
    assert [part.nfe for part in cells["latent_first"].parts] == [2]


def test_one_network_is_trained_for_all_paths(arguments):
    session = Session(load(arguments).tree)
    cells = cells_of(session)
    trained, samples = [], {}
    for name in ("offset", "latent_first", "encoder"):
        train_cell(session, cells[name], lambda text, done, total: trained.append((text, done)))
        sample_cell(session, cells[name], lambda *progress: None)
        (part,) = [part for part in cells[name].parts if part.nfe == 2]
        samples[name] = load_tensors(cells[name].samples(session, part))
        assert "nelbo_nats_per_token" in read_json(cells[name].facts(session))
    assert (
        sum(text.startswith("train joint") and done == 6 for text, done in trained) == 1
        and len(list((session.folder / "weights").iterdir())) == 1
    )
    calls = {name: (meta["nfe_latent"], meta["nfe_token"]) for name, (_, meta) in samples.items()}
    assert calls == {"offset": (0, 2), "latent_first": (1, 1), "encoder": (0, 2)}
