"""Published checkpoints: the forward pass against one written a second time, every tensor's name and shape, and bad files."""

import math

import pytest
import torch
from safetensors.torch import save_file

from baselines.checkpoints import MaskedCheckpoint, MaskedCheckpointOptions, UniformCheckpoint, UniformCheckpointOptions
from baselines.published import Known, manifest
from baselines.samplers.uniform import Uniform, UniformOptions
from harness.contracts import method as method_contract
from harness.contracts import sampler as sampler_contract
from harness.contracts.world import build_method, build_sampler
from harness.diffusion import uniform
from harness.errors import UserError
from tests.kit.checkpoint_kit import COND, LENGTH, WIDTH, layout, random_tensors, reference, write_checkpoint
from tests.kit.toys import generator_of, one_thread, tiny_problem  # noqa: F401

V = 7
X = torch.randint(V + 1, (3, LENGTH), generator=generator_of(5))  # V is the mask


def masked_of(path, vocab_size=V, **options) -> MaskedCheckpoint:
    return MaskedCheckpoint(tiny_problem(vocab_size, LENGTH), MaskedCheckpointOptions(path=str(path), **options))


def uniform_of(path, vocab_size=V, **options) -> UniformCheckpoint:
    return UniformCheckpoint(tiny_problem(vocab_size, LENGTH), UniformCheckpointOptions(path=str(path), **options))


def refused(path, make=masked_of, **options) -> str:
    with pytest.raises(UserError) as caught:
        make(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the forward pass -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("timed", "nested", "prefix"), [(False, False, "backbone."), (True, True, "backbone.backbone._orig_mod.")]
)
def test_forward_pass_is_that_of_the_layout(tmp_path, timed, nested, prefix):
    tensors = random_tensors(V + 1)
    method = masked_of(write_checkpoint(tmp_path, tensors, timed, nested, prefix))
    t_B = torch.tensor([1.0, 0.5, 0.1])
    level_B = torch.tensor([-math.log(1 - 0.999 * t) if timed else 0.0 for t in t_B.tolist()])
    expected = reference(tensors, X, level_B)
    with torch.no_grad():
        found = method.denoise(X, torch.ones_like(X, dtype=torch.bool), t_B).whole().view(3, LENGTH, V)
    assert torch.allclose(found, expected[..., :V], atol=1e-4)  # without the mask's own logit
    other = reference(tensors, X, level_B + 1.0)
    assert not torch.allclose(other, expected, atol=1e-2)  # the level is read, also where it is always 0


def test_only_selected_positions_have_logits(tmp_path):
    method = masked_of(write_checkpoint(tmp_path, random_tensors(V + 1)))
    select = X == V
    with torch.no_grad():
        some = method.denoise(X, select, torch.ones(3)).whole()
        each = method.denoise(X, torch.ones_like(select), torch.ones(3)).whole()
    assert torch.allclose(some, each.view(3, LENGTH, V)[select], atol=1e-5)


def test_a_mask_among_the_symbols_is_seen_and_never_drawn(tmp_path):
    tensors, mask = random_tensors(V), 3
    method = masked_of(write_checkpoint(tmp_path, tensors), mask_id=mask)
    seen = torch.where(X == V, mask, X)  # id V stands for the mask in this project
    with torch.no_grad():
        found = method.denoise(X, torch.ones_like(X, dtype=torch.bool), torch.ones(3)).whole().view(3, LENGTH, V)
    expected = reference(tensors, seen, torch.zeros(3))
    rest = [i for i in range(V) if i != mask]
    assert torch.allclose(found[..., rest], expected[..., rest], atol=1e-4)
    assert (found.double().softmax(-1)[..., mask] == 0).all()
    said = refused(tmp_path)
    assert "mask_id=103 for bert-base-uncased" in said and "0 to 6" in refused(tmp_path, mask_id=9)


def test_names_shapes_and_the_head_are_those_of_the_layout(tmp_path):
    tensors = random_tensors(V + 1)
    network = masked_of(write_checkpoint(tmp_path, tensors)).network
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(own.items()) == [item for item in layout(V + 1).items() if item[0] != "rotary_emb.inv_freq"]
    assert not torch.equal(network.vocab_embed["embedding"], network.output_layer["linear"].weight)
    assert network.shape.cond == COND and network.shape.length == LENGTH
    assert not any(p.requires_grad for p in network.parameters())


# ---- as a method ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("check", method_contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["Masked", "Uniform"])
def test_method_contract(tmp_path, kind, check):
    folder = write_checkpoint(tmp_path, random_tensors(V + 1), timed=kind == "Uniform")
    node = {"_target_": f"baselines.checkpoints.{kind}Checkpoint", "path": str(folder)}
    check(lambda seed: build_method(node, seed))


@pytest.mark.parametrize(("kind", "sampler"), [("Masked", "ancestral.Ancestral"), ("Uniform", "uniform.Uniform")])
def test_sampler_contract(tmp_path, kind, sampler):
    tensors = random_tensors(V + 1)
    # So that no symbol is nearly sure.
    tensors |= {name: 0.1 * t for name, t in tensors.items() if "adaLN" in name or "linear" in name}
    folder = write_checkpoint(tmp_path, tensors, timed=kind == "Uniform")
    node = {"_target_": f"baselines.checkpoints.{kind}Checkpoint", "path": str(folder)}
    for check in sampler_contract.CHECKS:
        check(lambda seed: build_sampler({"_target_": f"baselines.samplers.{sampler}"}, node, seed))


def test_steps_of_duo_are_the_published_posterior(tmp_path):
    """q(z_s | z_t, x0) of Duo (eq. 5 of arXiv 2412.10193) with the softmax in the place of x0, over all K = V states."""
    tensors = random_tensors(V)
    method = uniform_of(write_checkpoint(tmp_path, tensors, timed=True))
    z_1L, alpha_t, alpha_s = torch.randint(V, (1, LENGTH), generator=generator_of(1)), 0.25, 0.5
    x_LV = torch.softmax(reference(tensors, z_1L, torch.tensor([-math.log(1 - 0.999 * 0.75)])), -1)[0].double()
    z_LV = torch.nn.functional.one_hot(z_1L[0], V).double()
    a = alpha_t / alpha_s
    upper = V * alpha_t * x_LV * z_LV + (a - alpha_t) * z_LV + (alpha_s - alpha_t) * x_LV + (1 - a) * (1 - alpha_s) / V
    expected = upper / (V * alpha_t * x_LV.gather(1, z_1L.T) + 1 - alpha_t)
    with torch.no_grad():
        logits, _ = method.leave_one_out(z_1L, z_1L, torch.tensor([0.75], dtype=torch.float64))
        n, loo_RV, z_R = 20000, logits.whole(), z_1L[0]
        u_R3 = torch.rand((n * LENGTH, 3), generator=generator_of(2), dtype=torch.float64)
        drawn_R = uniform.draw_step(loo_RV.repeat(n, 1), z_R.repeat(n), u_R3, alpha_t, alpha_s)
    found = torch.nn.functional.one_hot(drawn_R.view(n, LENGTH), V).double().mean(0)
    assert torch.allclose(expected.sum(-1), torch.ones(LENGTH, dtype=torch.float64))
    assert (found - expected).abs().max() < 5 * math.sqrt(0.25 / n)
    drawn = Uniform(method, UniformOptions()).draw(4, 3, generator_of(0))
    assert drawn.nfe == 3 and int(drawn.x_NL.max()) < V


# ---- files that are not as they should be ---------------------------------------------------------------------------
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path):
    good = random_tensors(V + 1)

    def broken(**changes) -> str:
        tensors = {name: t for name, t in (good | changes).items() if t is not None}
        return refused(write_checkpoint(tmp_path / "c", tensors))

    name = "blocks.1.attn_out.weight"
    assert f"lacks 1 of its tensors, first {name}; it would be random" in broken(**{name: None})
    assert "has 1 tensors of another model, first blocks.0.extra" in broken(**{"blocks.0.extra": torch.ones(2)})
    shape = broken(**{"blocks.0.adaLN_modulation.weight": torch.zeros(6 * WIDTH, COND + 1)})
    assert f"has the shape ({6 * WIDTH}, {COND + 1}), and by its config.json ({6 * WIDTH}, {COND})" in shape
    assert "by its length there are 4" in broken(**{"rotary_emb.inv_freq": torch.ones(2)})
    save_file({"a": torch.ones(2)}, tmp_path / "c" / "model.safetensors")
    assert "of another layout" in refused(tmp_path / "c")


def test_config_data_and_process_have_to_fit(tmp_path):
    folder = write_checkpoint(tmp_path / "c", random_tensors(V + 1))
    assert "use scale.length=8, not 4" in refused(
        folder, lambda path: MaskedCheckpoint(tiny_problem(V, 4), MaskedCheckpointOptions(path=str(path)))
    )
    assert "its table has 8 symbols, and the data 5" in refused(folder, vocab_size=5)
    assert "use method=duo_checkpoint" in refused(folder, entry="duo_owt")
    assert "did you mean 'mdlm_owt'?" in refused(folder, entry="mdlm_own")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"cond_dim": 12', '"cond_dim": 13'))
    assert "by its config.json (96, 13)" in refused(folder)
    (folder / "config.json").write_text(text.replace('"time_conditioning": false', '"time_conditioning": null'))
    assert "must be true or false" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder) and "no config.json" in refused(folder / "model.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"")
    assert "python -m baselines.convert" in refused(tmp_path / "x.ckpt")
    assert "is empty" in refused("")


def test_a_repository_has_to_be_the_one_that_is_known(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, random_tensors(V + 1))
    known = Known("some/where", "masked", "some/tokenizer", LENGTH, "MIT", "Known", (), revision="old", sha256="0" * 64)
    monkeypatch.setattr("baselines.published.manifest", lambda: {"known": known})
    asked = []
    monkeypatch.setattr("baselines.published.locate", lambda *a: asked.append(a) or {"revision": "1" * 40})
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder))
    assert "the one that is known 000000000000" in refused("some/where") and asked[0][:2] == ("some/where", "old")
    assert masked_of(folder, entry="known").title == "Known"  # one's own copy may be packed in another way


def test_identity_changes_with_the_file(tmp_path):
    node = {"path": str(tmp_path), "entry": "", "revision": None}
    write_checkpoint(tmp_path, random_tensors(V + 1))
    first = MaskedCheckpoint.files_key(node)
    write_checkpoint(tmp_path, random_tensors(V + 1, seed=1))
    assert MaskedCheckpoint.files_key(node) != first


def test_the_manifest_says_what_has_to_be_known():
    entries = manifest()
    assert {"mdlm_owt", "duo_owt", "duo_distilled_owt", "sdtt_owt", "mdlm_lm1b"} == set(entries)
    for entry in entries.values():
        assert entry.process in ("masked", "uniform") and entry.length in (128, 1024) and entry.traps and entry.licence
        assert bool(entry.printed) == bool(entry.printed_in)
    assert entries["mdlm_lm1b"].mask_id == 103
