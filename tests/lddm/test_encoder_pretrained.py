"""A frozen text model as the latent encoder: what it reads, what is trained and stored, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models as token_models
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from harness.config.load import load
from harness.errors import UserError
from harness.study.session import Session
from harness.training import loop
from harness.training.checkpoint import load_model, load_tensors, save_tensors
from lddm.fuji import FUJI, FUJIOptions
from lddm.pretrained import PRESETS, PretrainedSlots, TextReader, _shares
from lddm.seq import SEQ, SEQOptions
from tests.kit.study_kit import command, write_corpus
from tests.kit.toys import generator_of, job_of, one_thread, sampler_of, scramble, tiny_problem, token_data  # noqa: F401

LETTERS = "abcdefg "
IDS = {letter: i + 3 for i, letter in enumerate(LETTERS)}
CLS, SEP, H, CONTEXT = 1, 2, 12, 16


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, [CLS] in front and [SEP] behind."""
    vocab = {"[PAD]": 0, "[CLS]": CLS, "[SEP]": SEP, **IDS}
    raw = tokenizers.Tokenizer(token_models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    raw.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=CONTEXT, **names)


def tiny_bert(seed: int = 0) -> BertModel:
    config = BertConfig(
        vocab_size=16, hidden_size=H, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    torch.manual_seed(seed)
    return scramble(BertModel(config), seed).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    tiny_bert().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def reader_of(folder: str) -> TextReader:
    reader = TextReader(folder, "", "float32")
    reader.load()
    return reader


@torch.no_grad()
def hidden_of(text: str) -> torch.Tensor:
    """Last hidden states of the letters, without [CLS] and [SEP], (n, H)."""
    ids = torch.tensor([[CLS, *(IDS[letter] for letter in text), SEP]])
    return tiny_bert()(input_ids=ids).last_hidden_state[0, 1:-1]


# ---- what is read ---------------------------------------------------------------------------------------------------
def test_a_slot_is_the_mean_over_its_part_of_the_text(folder):
    texts = ["abcdefga", "gfed", "ab cd ef gaba"[:12], "c"]
    found = reader_of(folder).read(texts, 4, torch.device("cpu"))
    assert found.shape == (4, 4, H) and found.dtype == torch.float32
    for text, feature_SH in zip(texts[:3], found, strict=False):
        part = len(text) // 4
        assert torch.allclose(feature_SH, hidden_of(text).view(4, part, H).mean(1), atol=1e-5)
    assert torch.allclose(found[3], hidden_of("c").expand(4, H), atol=1e-5), "fewer tokens than slots: shared"


def test_parts_that_cut_a_token_weigh_it_by_their_overlap():
    """Five tokens in two slots: the third is half in each."""
    share_WST = _shares(torch.tensor([[False, True, True, True, True, True, False]]), torch.tensor([0]), 2, 1)
    assert share_WST[0, 0].tolist() == pytest.approx([0, 0.4, 0.4, 0.2, 0, 0, 0])
    assert share_WST[0, 1].tolist() == pytest.approx([0, 0, 0, 0.2, 0.4, 0.4, 0])


def test_a_text_does_not_depend_on_its_batch_and_an_empty_one_is_zero(folder, monkeypatch):
    texts, cpu, reader = ["abcdefgabc", "", "a b", "gg"], torch.device("cpu"), reader_of(folder)
    together = reader.read(texts, 3, cpu)
    alone = torch.cat([reader.read([text], 3, cpu) for text in texts])
    monkeypatch.setattr("lddm.pretrained._TOKENS_AT_ONCE", 1)
    assert torch.allclose(together, alone, atol=1e-5) and torch.allclose(
        together, reader.read(texts, 3, cpu), atol=1e-5
    )
    assert not together[1].any() and together.isfinite().all()


def test_a_long_text_is_read_whole_in_windows(folder):
    """14 letters fit between [CLS] and [SEP]; 28 + 4 letters are three windows, none of which sees the others."""
    text = "abcdefg gfedcba abcdefg gfedcba "
    assert len(text) == 32
    hidden = torch.cat([hidden_of(text[k : k + 14]) for k in (0, 14, 28)])
    found = reader_of(folder).read(["ab", text], 4, torch.device("cpu"))[1]
    assert torch.allclose(found, hidden.view(4, 8, H).mean(1), atol=1e-5)


# ---- as the encoder of the methods ----------------------------------------------------------------------------------
PROBLEM = dataclasses.replace(tiny_problem(), decode=lambda ids: "".join(LETTERS[i] for i in ids))
X = torch.randint(7, (24, 8), generator=generator_of(1))
BUILDS = {
    "fuji": lambda folder: FUJI(PROBLEM, FUJIOptions(slots=2, dims=3, encoder=folder)),
    "independent": lambda folder: FUJI(PROBLEM, FUJIOptions(slots=2, dims=3, encoder=folder, times="independent")),
    "seq": lambda folder: SEQ(PROBLEM, SEQOptions(slots=2, dims=3, encoder=folder, prior_depth=1, bank=32)),
}
every = pytest.mark.parametrize("name", sorted(BUILDS))


@every
def test_the_projection_alone_is_trained(name, folder):
    method = scramble(BUILDS[name](folder)).train()
    assert [n for n, _ in method.encoder.named_parameters()] == ["body.out.weight"]
    first = method.stages()[0].name
    method.set_stage(first)
    loss = method.loss(X, generator_of(2))
    loss.total.backward()
    weight = method.encoder.body.out.weight
    assert weight.shape == (3, H) and weight.grad.abs().max() > 0
    text_model = method.encoder.body.reader._model
    assert not any(p.requires_grad or p.grad is not None for p in text_model.parameters())
    assert not text_model.training, "dropout of the text model stays off"
    assert not {id(p) for p in text_model.parameters()} & {id(p) for p in method.parameters()}
    for stage in method.stages()[1:]:
        method.calibrate(X)
        method.set_stage(stage.name)
        method.zero_grad()
        method.loss(X, generator_of(3)).total.backward()
        assert weight.grad is None and not weight.requires_grad
    assert method.eval().bound(X, generator_of(4)).total_B.isfinite().all()


@every
def test_latents_are_standardised_whatever_the_text_model_s_scale(name, folder):
    method = scramble(BUILDS[name](folder)).eval()
    with torch.no_grad():
        method.calibrate(X)
        mu_NSD = method.encoder.mean(X).double()
    assert mu_NSD.shape == (24, 2, 3)
    assert torch.allclose(mu_NSD.mean(0), torch.zeros(2, 3, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(mu_NSD.std(0), torch.ones(2, 3, dtype=torch.float64), atol=1e-2)


@every
def test_a_checkpoint_holds_no_frozen_weights_and_gives_the_same_latents(name, folder, tmp_path):
    method, path = scramble(BUILDS[name](folder), seed=1).eval(), tmp_path / "model.safetensors"
    method.calibrate(X)
    save_tensors(path, dict(method.state_dict()), {})
    tensors, _ = load_tensors(path)
    kept = {key for key in tensors if key.startswith("encoder.body.")}
    assert kept == {"encoder.body.out.weight", "encoder.body.weights_sha256"}
    other = scramble(BUILDS[name](folder), seed=2).eval()
    load_model(other, tensors, path)
    assert torch.equal(other.encoder.mean(X), method.encoder.mean(X))
    bounds = [m.bound(X, generator_of(5)).total_B for m in (method, other)]
    assert torch.equal(*bounds)


@every
def test_sampling_needs_no_text_model(name, folder):
    method = BUILDS[name](folder).eval()
    assert sampler_of(method).draw(3, 4, generator_of(6)).x_NL.shape == (3, 8)
    assert not method.encoder.body.reader.loaded


def test_a_run_that_trains_and_continues_ends_with_the_same_numbers(folder, tmp_path):
    """The text model is found again by its name when a run goes on from its checkpoint."""
    data = dataclasses.replace(token_data(PROBLEM), decode=PROBLEM.decode)

    class Stop(Exception):
        pass

    def stop_at(text: str, done: int, total: int) -> None:
        if done == 10:
            raise Stop

    whole = BUILDS["fuji"](folder)
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    loop.train(job_of(whole, tmp_path / "whole", steps=16, data=data))
    cut = BUILDS["fuji"](folder)
    cut.load_state_dict(start)
    with pytest.raises(Stop):
        loop.train(job_of(cut, tmp_path / "cut", steps=16, data=data, progress=stop_at, checkpoint_seconds=0.0))
    again = BUILDS["fuji"](folder)
    loop.train(job_of(again, tmp_path / "cut", steps=16, data=data, checkpoint_seconds=0.0))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert whole.state_dict()["encoder.body.weights_sha256"].any()
    # Calibration reads the frozen model too.
    assert torch.isfinite(whole.encoder.standardise.running_var).all()


def test_a_study_gives_its_methods_the_text(folder, tmp_path):
    corpus = write_corpus(tmp_path / "text.txt", lines=300)
    arguments = command(corpus, tmp_path / "runs", tmp_path / "cache", f"methods.fuji.encoder={folder}")
    session = Session(load(arguments).tree)
    row = session.data.splits["train"][0].tolist()
    assert session.problem.decode(row) == session.data.decode(row) != ""
    method = session.build("fuji").train()
    assert method.loss(torch.tensor([row] * 3), generator_of(7)).total.isfinite()
    with pytest.raises(UserError, match="did you mean 'tiny-bert'"):
        Session(load([*arguments, f"methods.fuji.encoder={folder[:-1]}"]).tree).build("fuji")


# ---- what is refused ------------------------------------------------------------------------------------------------
def copy_of(folder: str, to: Path, change) -> str:
    """The model's folder with a change to its weights."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    save_file(change(tensors), to / "model.safetensors", metadata={"format": "pt"})
    return str(to)


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_checkpoint_of_other_weights_is_refused(folder, tmp_path, loaded_before):
    def nudge(tensors):
        name = sorted(tensors)[-1] if "pooler" not in sorted(tensors)[-1] else sorted(tensors)[0]
        return tensors | {name: tensors[name] + 0.25}

    method = BUILDS["fuji"](folder).eval()
    method.encoder.mean(X)
    other = BUILDS["fuji"](copy_of(folder, tmp_path / "tiny-bert", nudge)).eval()
    if loaded_before:
        other.encoder.mean(X)
    with pytest.raises(UserError, match="this model was trained with") as caught:
        other.load_state_dict(method.state_dict())
        other.encoder.mean(X)
    assert "\n" not in str(caught.value)


def test_a_head_may_be_absent_and_nothing_else(folder, tmp_path):
    bare = copy_of(folder, tmp_path / "bare", lambda t: {k: v for k, v in t.items() if "pooler" not in k})
    assert reader_of(bare).sha256 == reader_of(folder).sha256, "what is not read is not part of the identity"
    cut = copy_of(folder, tmp_path / "cut", lambda t: {k: v for k, v in t.items() if "layer.1" not in k})
    with pytest.raises(UserError, match=r"^encoder=.* lacks 16 of its weights .* or encoder=''$"):
        reader_of(cut)


def test_a_missing_folder_is_refused_with_the_nearest(folder):
    wrong = folder.replace("tiny-bert", "tiny-bret")
    with pytest.raises(UserError, match="is not a folder; did you mean 'tiny-bert'"):
        BUILDS["fuji"](wrong)
    with pytest.raises(UserError, match="is not a folder; use encoder=''"):
        BUILDS["fuji"](folder + "/nothing/like/it")


def test_other_refusals_are_one_line(folder, tmp_path):
    def build(problem=PROBLEM, **options):
        return FUJI(problem, FUJIOptions(**{"slots": 2, "dims": 3, "encoder": folder} | options))

    empty = tmp_path / "empty"
    empty.mkdir()
    pair = tmp_path / "pair"
    shutil.copytree(folder, pair)
    (pair / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 8}))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"not safetensors")
    for words, call in {
        "input_mask=0.3: a pretrained encoder reads whole texts": lambda: build(input_mask=0.3),
        "these data have none": lambda: build(problem=tiny_problem()),
        "has no config.json": lambda: build(encoder=str(empty)),
        "is an encoder with a decoder": lambda: build(encoder=str(pair)),
        "cannot be loaded": lambda: build(encoder=str(damaged)).encoder.mean(X),
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_without_a_pretrained_encoder_nothing_of_it_is_there():
    method = FUJI(tiny_problem(), FUJIOptions(slots=2, dims=3))
    assert not isinstance(method.encoder.body, PretrainedSlots)


def test_a_preset_is_a_folder_of_an_installed_package(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "made_up_encoder" / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PRESETS, "minilm", ("made_up_encoder", "model", "pip install made-up"))
    preset, plain = TextReader("minilm", "", "float32"), TextReader(folder, "", "float32")
    preset.load()
    plain.load()
    assert preset.sha256 == plain.sha256 and preset.source == "minilm"
    monkeypatch.setitem(PRESETS, "minilm", ("no_such_package", "model", "pip install made-up"))
    with pytest.raises(
        UserError, match="^encoder=minilm, model is in the package no_such_package, which is not installed; pip"
    ):
        TextReader("minilm", "", "float32")
