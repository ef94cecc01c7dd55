"""Concept files: every layout is read and written; other files are named, and never run."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import LAYOUTS, diffusers, kohya, kohya_pt, pickled, tensors
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import ROOT, save_tiny_sdxl

from detsd.__main__ import main
from detsd.concepts import cards, pickles, safe_load
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.source import LAYOUTS as WRITTEN
from detsd.concepts.source import ConceptSource, word_problem
from detsd.concepts.usage import PROMPTS, READERS, prompts
from detsd.concepts.writing import encode, store, write_concepts
from detsd.config import ModelConfig
from detsd.models.loading import load_base_model
from detsd.runs.folder import DICT_FILE
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils.errors import UserError
from detsd.utils.paths import file_name

ONE = [torch.randn(3, 768)]
TWO = (torch.randn(3, 768), torch.randn(3, 1280))
CONCEPTS = [
    LearnedConcept("blob-thing", "red ball", (torch.randn(2, 16),)),
    LearnedConcept("other/thing", "blue cube", (torch.randn(3, 16),)),
]
SDXL = LearnedConcept("<x-thing>", "red ball", TWO, model="xl", model_hash="1a2b", steps=70)
CASES = [
    (writer, ONE if encoders == 1 else TWO, by_file)
    for writers, numbers, by_file in LAYOUTS.values()
    for encoders in numbers
    for writer in (writers if encoders == 1 else writers[:1])
]


def same(a: LearnedConcept, b: LearnedConcept) -> bool:
    fields = [f.name for f in dataclasses.fields(a) if not f.name.startswith("embeddings")]
    alike = all(getattr(a, name) == getattr(b, name) for name in fields)
    return (
        alike
        and len(a.embeddings) == len(b.embeddings)
        and all(map(torch.equal, a.embeddings, b.embeddings))
    )


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "rows", "by_file"), CASES, ids=[f"{w.__name__}-{len(r)}" for w, r, _ in CASES]
)
def test_what_another_tool_wrote_is_read(tmp_path, writer, rows, by_file):
    """Rows and word are right, whatever the suffix; `=word` gives another word."""
    path = writer(tmp_path / "learned_embeds", "<cat-toy>", [r.clone() for r in rows])
    (concept,) = read_concepts(path)
    assert concept.name == ("learned_embeds" if by_file else "<cat-toy>")
    wanted = [rows[0][:1]] if concept.num_vectors == 1 else rows
    assert len(concept.embeddings) == len(wanted)
    assert all(map(torch.equal, concept.embeddings, wanted))
    assert all(r.dtype == torch.float32 and r.is_contiguous() for r in concept.embeddings)
    assert not any(r.requires_grad for r in concept.embeddings)
    (renamed,) = read_concepts(f"{path}=my-toy")
    assert same(renamed, dataclasses.replace(concept, name="my-toy"))
    if len(rows) == 1 or writer is not diffusers:
        for suffix in (".PT", ".jpg", ""):
            other = path.with_name("copy" + suffix)
            other.write_bytes(path.read_bytes())
            (copy,) = read_concepts(other)
            assert all(map(torch.equal, copy.embeddings, concept.embeddings))
            assert copy.name == ("copy" if by_file else "<cat-toy>")


def test_what_a_file_tells_besides_is_kept(tmp_path):
    a1111 = LAYOUTS["A1111"][0][0](tmp_path / "a", "cat-toy", ONE)
    (concept,) = read_concepts(a1111)
    assert (concept.steps, concept.model) == (1200, "v1-5-pruned-emaonly")
    assert concept.model_hash == "81761151"


@pytest.mark.parametrize("named", ["learned_embeds", "learned_embeds_2", "folder"])
def test_the_pair_of_diffusers_is_one_concept(tmp_path, named):
    path = diffusers(tmp_path / "learned_embeds", "x", TWO)
    assert path == tmp_path / "learned_embeds.safetensors"
    (concept,) = read_concepts(tmp_path if named == "folder" else tmp_path / f"{named}.safetensors")
    assert all(map(torch.equal, concept.embeddings, TWO))


def test_files_of_like_names_are_no_pair(tmp_path):
    """They are of Stable Diffusion 1 and 2, of another word, or damaged."""
    tensors(tmp_path / "x", {"x": ONE[0]})
    for other in ({"x": torch.ones(3, 1024)}, {"y": TWO[1]}, {"x": torch.ones(9, 1280)}):
        tensors(tmp_path / "x_2", other)
        assert read_concepts(tmp_path / "x.safetensors")[0].widths == (768,)
    tensors(tmp_path / "y", {"y": torch.tensor(1.0)})
    tensors(tmp_path / "y_2", {"y": torch.tensor(1.0)})
    with pytest.raises(UserError, match="not a matrix"):
        read_concepts(tmp_path / "y.safetensors")
    (tmp_path / "x_2.safetensors").write_text("no")
    assert read_concepts(tmp_path / "x.safetensors")[0].widths == (768,)


def test_words_in_a_lora_are_read_and_the_lora_is_left_out(tmp_path, caplog, monkeypatch):
    """Several words of any spelling are beside a LoRA larger than any concept."""
    table = {f"bundle_emb.{w}.{k}": r.clone() for w in ("my.word", "x") for k, r in
             zip(("clip_l", "clip_g"), TWO, strict=True)}  # fmt: skip
    path = tensors(tmp_path / "lora", table | {"lora_te1_x.lora_up.weight": torch.ones(999, 9)})
    monkeypatch.setattr(safe_load, "MAX_BYTES", 4 * 2 * 3 * (768 + 1280))
    found = read_concepts(path)
    assert [c.name for c in found] == ["my.word", "x"]
    assert all(map(torch.equal, found[0].embeddings, TWO))
    assert f"{path} is a LoRA that includes a concept; only the concept is read" in caplog.text
    monkeypatch.setattr(safe_load, "MAX_BYTES", 2**10)
    with pytest.raises(UserError, match=r"a file of 0\.0 GB"):
        read_concepts(path)
    monkeypatch.undo()
    table = {"bundle_emb.x.t5": torch.ones(1, 4096), "bundle_emb.x.clip_l": ONE[0]}
    with pytest.raises(UserError, match="other text encoders .it contains 't5'"):
        read_concepts(tensors(tmp_path / "flux", table))


def test_trained_tokens_of_peft_ask_for_a_word(tmp_path):
    key = "base_model.model.text_model.embeddings.token_embedding.trainable_tokens_delta"
    lora = {"base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(2, 2)}
    for others in ({}, lora):
        path = tensors(tmp_path / "adapter_model", {key: ONE[0]} | others)
        with pytest.raises(
            UserError, match="without their word; add it, as in .*safetensors=my-word"
        ):
            read_concepts(path)
        (concept,) = read_concepts(f"{path}=cat-toy")
        assert same(concept, LearnedConcept("cat-toy", "", (ONE[0],)))


def test_ai_toolkit_notes_are_json(tmp_path):
    path = LAYOUTS["ai-toolkit"][0][0](tmp_path / "job_000000500", 'a "b" c', ONE)
    (concept,) = read_concepts(path)
    assert same(concept, LearnedConcept('a "b" c', "", (ONE[0],), steps=500))


def test_a_card_is_told_from_a_picture(tmp_path):
    """The random numbers are the ones by which A1111 recognises its cards."""
    numbers = cards._generator()
    assert list(itertools.islice(numbers, 8)) == [253, 242, 127, 44, 157, 27, 239, 133]
    assert sum(itertools.islice(cards._generator(), 100, 100_100)) == 12731374
    rng = np.random.default_rng(0)
    pictures = [np.zeros((9, 9, 3)), rng.integers(0, 256, (64, 80, 3))]
    bars = rng.integers(1, 256, (64, 80, 3))
    bars[:, [20, 59]] = 0
    for k, picture in enumerate([*pictures, bars]):
        for suffix, options in ((".png", {}), (".webp", {"lossless": True})):
            path = tmp_path / f"{k}{suffix}"
            Image.fromarray(picture.astype(np.uint8)).save(path, **options)
            with pytest.raises(UserError, match="is a picture"):
                read_concepts(path)


def test_half_precision_and_many_concepts(tmp_path):
    rows = torch.randn(2, 16).bfloat16()
    path = tensors(tmp_path / "two", {"a": rows, "b": rows.half()})
    a, b = read_concepts(path)
    assert (a.name, b.name) == ("a", "b")
    assert torch.equal(a.embeddings[0], rows.float())
    assert torch.equal(b.embeddings[0], rows.half().float())
    with pytest.raises(UserError, match="holds 2 concepts, which cannot all have the word 'c'"):
        read_concepts(f"{path}=c")


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    for step in (20, 100):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        write_concepts([dataclasses.replace(CONCEPTS[0], steps=step)], folder)
    (tmp_path / "checkpoints" / "step-00000300").mkdir()  # without a concept
    (tmp_path / "checkpoints" / ".step-00000400").mkdir()
    write_concepts(CONCEPTS, tmp_path / "checkpoints" / ".step-00000400")  # not complete
    for source in (tmp_path, tmp_path / "checkpoints", folder):
        assert read_concepts(source)[0].steps == 100
        located = ConceptSource.parse(f"{source}=word").located
        assert str(located) == f"{folder / DICT_FILE}=word"


def test_what_is_a_source_and_what_a_phrase(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learned = ("red ball/checkpoints", "auto/checkpoints", "a=b/checkpoints")
    for folder in (*learned, "lora", "cat", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    tensors(tmp_path / "a=b" / "x", {"x": ONE[0]})
    (tmp_path / "lora" / "adapter_config.json").touch()
    (tmp_path / "cat" / "1.png").touch()
    sources = ["red ball", "lora", "empty", "./cat", "gone.bin", "GONE.PT", "gone.pt=word", "a=b"]
    sources += ["a=b/x.safetensors=word"]
    phrases = ["red cube", "cat", "auto", "version 3.5 of it", "a = b", "x" * 5000, "a\0b", ""]
    phrases += ["e=mc2"]
    assert [s for s in sources + phrases if ConceptSource.looks_like(s)] == sources
    assert read_concepts("a=b/x.safetensors")[0].name == "x"
    assert read_concepts("a=b/x.safetensors=word")[0].name == "word"
    with pytest.raises(UserError, match=r"gone\.pt does not exist"):
        read_concepts("gone.pt=word")


UNSEEN = {
    "my\xa0cat": "my-cat", "my\u200bcat": "mycat", "my\u00adcat": "mycat", "my\tcat": "my-cat",
    "my\ncat": "my-cat", "\ufeffcat-toy": "cat-toy", "cat\u2060toy": "cattoy",
}  # fmt: skip
SEEN = ["می\u200cخواهم", "क्\u200dष", "👩\u200d🚀", "mon chat", "x" * 100, "ö", "日本"]


@pytest.mark.parametrize("name", UNSEEN)
def test_a_word_that_cannot_be_read_again_is_refused_at_both_ends(tmp_path, name):
    """It is refused before training, in a file, and as a file's new word; another is suggested."""
    problem = word_problem(name)
    assert repr(UNSEEN[name]) in problem
    assert name not in problem
    assert word_problem(UNSEEN[name]) is None
    path = tensors(tmp_path / "x", {name: ONE[0]})
    with pytest.raises(UserError, match="an invisible character") as caught:
        read_concepts(path)
    assert str(caught.value).endswith(f"{path}=my-word")
    path = tensors(tmp_path / "y", {"cat-toy": ONE[0]})
    with pytest.raises(UserError, match="an invisible character"):
        read_concepts(f"{path}={name.strip()}x\u200b")
    assert word_problem("x" * 101).startswith("concept 'xxxxxxxxxxxxxxxxxxxx' ... has 101 char")


@pytest.mark.parametrize("name", SEEN)
def test_every_word_that_can_be_written_is_read_again(tmp_path, name):
    """This includes joiners, which occur in Persian, Hindi and emoji."""
    assert word_problem(name) is None
    concept = dataclasses.replace(CONCEPTS[0], name=name)
    write_concepts([concept], tmp_path)
    assert all(same(read_concepts(p)[0], concept) for p in (tmp_path, *tmp_path.iterdir()))


def test_one_of_two_concepts_in_a_file_can_be_renamed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_concepts(CONCEPTS, tmp_path)
    for old, names in (
        ("blob-thing", ["new", "other/thing"]),
        ("other/thing", ["blob-thing", "new"]),
    ):
        for source in (f"{DICT_FILE}={old}=new", f"{tmp_path}={old}=new"):
            found = read_concepts(source)
            assert [c.name for c in found] == names
            assert all(
                torch.equal(a.embeddings[0], b.embeddings[0])
                for a, b in zip(found, CONCEPTS, strict=True)
            )
            located = ConceptSource.parse(source).located
            assert [c.name for c in read_concepts(str(located))] == names
            assert ConceptSource.looks_like(source)
    with pytest.raises(UserError, match="holds no concept 'cat'; it holds blob-thing, other/thing"):
        read_concepts(f"{DICT_FILE}=cat=new")
    with pytest.raises(
        UserError, match=f"say which one gets it, as in .*{DICT_FILE}=blob-thing=new"
    ):
        read_concepts(f"{DICT_FILE}=new")
    uuid = "0123abcd-0000-0000-0000-00000000000f"
    assert ConceptSource.parse(f"{uuid}=a=b") == ConceptSource(Path(), "b", uuid, "a")
    assert str(ConceptSource.parse(f"uuid:{uuid}=b")) == f"uuid:{uuid}=b"


# ---- writing -------------------------------------------------------------------------------------


def test_a_checkpoint_holds_all_and_a_file_of_each(tmp_path):
    write_concepts(CONCEPTS, tmp_path)
    for where in (tmp_path, tmp_path / DICT_FILE):
        assert all(map(same, read_concepts(where), CONCEPTS))
    table = torch.load(tmp_path / DICT_FILE, weights_only=True)
    assert table["blob-thing"]["initializer_strs"] == "red ball"
    # A slice saved as a view would include the whole table.
    assert table["blob-thing"]["learned_embeddings"].untyped_storage().nbytes() == 2 * 16 * 4
    assert set(load_file(tmp_path / "blob-thing.safetensors")) == {"blob-thing"}
    assert same(read_concepts(tmp_path / "other_thing.safetensors")[0], CONCEPTS[1])
    assert file_name("../x y") == "x_y"


@pytest.mark.parametrize("layout", WRITTEN)
def test_export_loses_nothing(tmp_path, layout):
    one = dataclasses.replace(SDXL, embeddings=TWO[:1], name="other/thing")
    for concept in (one, SDXL):
        folder = tmp_path / str(len(concept.embeddings))
        if (layout, len(concept.embeddings)) in (("a1111", 2), ("sdxl", 1)):
            with pytest.raises(UserError, match="--format"):
                encode([concept], layout)
            continue
        store(encode([concept], layout), folder)
        path = sorted(folder.iterdir())[0]
        assert same(read_concepts(path)[0], concept)
        store(encode([concept], layout), folder)  # writing the same again is no clash
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
        with pytest.raises(UserError, match="already exists and holds something else"):
            store({path.name: b"other"}, folder)
        assert same(read_concepts(path)[0], concept)
    clash = [one, dataclasses.replace(one, name="other thing" if layout != "detsd" else one.name)]
    if layout != "sdxl":
        with pytest.raises(UserError, match="FILE=WORD"):
            encode(clash, layout)


def test_a_digest_is_of_the_rows_of_every_text_encoder():
    first = dataclasses.replace(SDXL, embeddings=(TWO[0] + 1, TWO[1]))
    second = dataclasses.replace(SDXL, embeddings=(TWO[0], TWO[1] + 1))
    assert len({c.digest for c in (SDXL, first, second)}) == 3
    assert dataclasses.replace(SDXL, name="other", steps=1).digest == SDXL.digest


def test_a_step_that_is_not_known_is_not_written(tmp_path):
    """ai-toolkit converts any value to a whole number."""
    for steps in (None, 70):
        concept = dataclasses.replace(CONCEPTS[0], steps=steps)
        (data,) = encode([concept], "a1111").values()
        assert torch.load(io.BytesIO(data)).get("step", "none") == (steps or "none")


def test_a_renamed_file_has_its_new_name(tmp_path):
    store(encode([CONCEPTS[1]], "kohya"), tmp_path)
    (tmp_path / "other_thing.safetensors").rename(tmp_path / "mine.safetensors")
    assert read_concepts(tmp_path / "mine.safetensors")[0].name == "mine"


def test_what_other_tools_show(tmp_path):
    store(encode([SDXL], "sdxl"), tmp_path)
    with safe_open(tmp_path / "x-thing.safetensors", "pt") as f:
        notes = f.metadata()
    assert notes["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    assert {"modelspec.sai_model_spec", "modelspec.implementation"} <= notes.keys()
    assert notes["modelspec.title"] == notes["name"] == "<x-thing>"
    assert (notes["step"], notes["sd_checkpoint_name"], notes["sd_checkpoint"]) == (
        "70", "xl", "1a2b")  # fmt: skip


# Diffusers takes a process 5 s of CPU time to import, 3 s without the collector.
STOCK = """
import gc, json, sys
gc.disable()
import numpy as np, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
out, prompt, word, plan = sys.argv[1:]
for model, exports in json.loads(plan).items():
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    sides = [(pipe.text_encoder, pipe.tokenizer)]
    if hasattr(pipe, "text_encoder_2"):
        sides.append((pipe.text_encoder_2, pipe.tokenizer_2))
    for layout, files in exports.items():
        token = f"{word}-{layout}"
        if layout == "detsd":
            entry = torch.load(files[0], weights_only=True)[word]
            files = [entry[f"learned_embeddings{end}"] for end in ("", "_2")[:len(sides)]]
        elif len(files) < len(sides):
            table = load_file(files[0])
            files = [table["clip_l"], table["clip_g"]]
        for (encoder, tokenizer), file in zip(sides, files, strict=True):
            pipe.load_textual_inversion(
                file, token=token, text_encoder=encoder, tokenizer=tokenizer
            )
        image = pipe(
            prompt.replace(word, token), num_inference_steps=3, guidance_scale=7.5,
            output_type="np", generator=torch.Generator().manual_seed(7),
        ).images[0]
        np.save(f"{out}/{len(sides)}-{layout}.npy", image * 255)
assert not any(name.startswith("detsd") for name in sys.modules)
gc.freeze()  # nothing to take apart at the end
"""


def test_stock_diffusers_makes_our_image_of_every_export(tmp_path, tiny_model):
    """This covers one and two text encoders, in a process without detsd."""
    one, seeded = CONCEPTS[0], torch.Generator().manual_seed(0)
    concepts = (
        one,
        dataclasses.replace(
            one, embeddings=(*one.embeddings, torch.randn(2, 24, generator=seeded))
        ),
    )
    models = (str(tiny_model), str(save_tiny_sdxl(tmp_path / "sdxl")))
    plan = {model: {} for model in models}
    for model, concept in zip(models, concepts, strict=True):
        source = tmp_path / f"source{len(concept.embeddings)}"
        source.mkdir()
        write_concepts([concept], source)
        for layout in WRITTEN:
            folder = tmp_path / f"{layout}{len(concept.embeddings)}"
            code = main(["export", str(source), "--format", layout, "--output", str(folder)])
            assert code == (
                2 if (layout, len(concept.embeddings)) in (("a1111", 2), ("sdxl", 1)) else 0
            )
            if code == 0:
                plan[model][layout] = sorted(map(str, folder.iterdir()))
    prompt = f"a photo of a {one.name} on grass"
    subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path), prompt, one.name, json.dumps(plan)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
    )
    for model, concept, sampler in zip(models, concepts, ("ddim", "euler"), strict=True):
        pipe = DetSDTextualInversionPipeline.from_pretrained(model)
        job = Job(prompt, 7, num_inference_steps=3, scheduler_name=sampler)
        plain = np.asarray(pipe.make([job])[0].image)
        pipe.load_concepts(tmp_path / f"source{len(concept.embeddings)}")
        ours = np.asarray(pipe.make([job])[0].image)
        assert not np.array_equal(ours, plain)
        for layout in plan[model]:
            theirs = np.load(tmp_path / f"{len(concept.embeddings)}-{layout}.npy")
            # Ours is theirs rounded. Another number of threads moves a level by .0003 (measured),
            # so that one in three thousand is rounded the other way.
            assert np.abs(theirs - ours).max() < 0.501, layout
            assert np.abs(theirs - plain).max() > 2, layout


WORDS = """
import copy, gc, json, sys
gc.disable()
import numpy as np
from diffusers import StableDiffusionPipeline
model, out, plan = sys.argv[1:]
loaded = StableDiffusionPipeline.from_pretrained(model, unet=None, vae=None)
for k, (files, prompt) in enumerate(json.loads(plan)):
    pipe = copy.deepcopy(loaded)
    for file, options in files:
        pipe.load_textual_inversion(file, **options)
    states = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    np.save(f"{out}/{k}.npy", states.detach().numpy())
assert not any(name.startswith("detsd") for name in sys.modules)
gc.freeze()  # nothing to take apart at the end
"""


def test_stock_diffusers_uses_every_vector_whatever_the_word(tmp_path, tiny_model, capsys):
    """The words have capitals, underscores or a final number; one is a prefix of another."""
    names = ["DetLogo", "ISO-tag", "det_logo", "my-logo_1", "Ünï", "det-logo", "det-logo-demo"]
    concepts = [LearnedConcept(n, "red ball", (torch.randn(3, 16),)) for n in names]
    concepts += [LearnedConcept("OneVector", "", (torch.randn(1, 16),))]
    plan, wanted = [], []
    ours = load_base_model(ModelConfig(str(tiny_model)), torch.device("cpu"))

    def states(concepts, prompt):
        for c in concepts:
            ours.vocabulary.add(c)
        found = ours.encode_prompts([prompt]).prompt_embeds
        for c in concepts:
            ours.vocabulary.remove(c.name)
        return found

    for c in concepts:
        write_concepts([c], tmp_path)
        exported = tmp_path / "exported"
        for layout in ("diffusers", "a1111"):
            capsys.readouterr()
            source = str(tmp_path / f"{file_name(c.name)}.safetensors")
            assert main(["export", source, "--format", layout, "--output", str(exported)]) == 0
            said = capsys.readouterr().out
            word = re.search(r"^  diffusers: (.*)$", said, re.M)[1]
            assert ("keeps only the first" in said) == (word != c.name)
            for file in (Path(said.splitlines()[0]), Path(source)):
                plan.append(([(str(file), {})], f"a photo of a {word} on grass"))
                wanted.append(states([c], f"a photo of a {c.name} on grass"))
                assert same(read_concepts(file)[0], c)  # with its own spelling
    short, long = concepts[5:7]
    write_concepts([short, long], tmp_path)
    two = ["export", str(tmp_path), "--format", "diffusers", "--output", str(tmp_path / "two")]
    assert main(two) == 0
    said = capsys.readouterr().out
    assert "det-logo-demo begins with det-logo: if diffusers loads both" in said
    capital = dataclasses.replace(short, name="Det-Logo")
    (tmp_path / "same").mkdir()
    write_concepts([short, capital], tmp_path / "same")
    alike = ["export", str(tmp_path / "same"), "--format", "a1111", "--output", str(tmp_path / "x")]
    assert main(alike) == 0
    assert "diffusers reads two of the words as det-logo" in capsys.readouterr().out
    files = [(f"{tmp_path}/two/{c.name}.safetensors", {}) for c in (short, long)]
    assert 'token="<det-logo>"' in said
    files[0] = (files[0][0], {"token": "<det-logo>"})
    plan.append((files, "a det-logo-demo beside a <det-logo>"))
    wanted.append(states([short, long], "a det-logo-demo beside a det-logo"))
    subprocess.run(
        [sys.executable, "-c", WORDS, str(tiny_model), str(tmp_path), json.dumps(plan)],
        check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    for k, (call, state) in enumerate(zip(plan, wanted, strict=True)):
        found = torch.from_numpy(np.load(tmp_path / f"{k}.npy"))
        assert torch.allclose(found, state, atol=1e-5), call


def test_an_export_says_what_to_write_in_each_tool(tmp_path, capsys, monkeypatch):
    """Several formats fit in one folder; files with other vectors are not replaced."""
    monkeypatch.chdir(tmp_path)
    concept = dataclasses.replace(CONCEPTS[0], name="Det Logo", embeddings=(torch.randn(2, 768),))
    write_concepts([concept], tmp_path)
    said = {}
    for layout in ("diffusers", "a1111", "kohya", "onetrainer", "diffusers", "kohya"):
        assert main(["export", DICT_FILE, "--format", layout, "--output", "all"]) == 0
        said[layout] = capsys.readouterr().out
    assert sorted(str(p) for p in Path("all").rglob("*.*")) == [
        "all/Det_Logo.pt", "all/Det_Logo.safetensors", "all/kohya/Det_Logo.safetensors",
        "all/onetrainer/Det_Logo.safetensors",
    ]  # fmt: skip
    for line in ("A1111, Forge, SD.Next: Det_Logo", "ComfyUI: embedding:Det_Logo",
                 "SwarmUI: <embed:Det_Logo>"):  # fmt: skip
        assert all(f"  {line}\n" in said[layout] for layout in ("diffusers", "a1111", "kohya"))
    assert "  InvokeAI: <Det_Logo>\n" in said["kohya"]
    assert "InvokeAI" not in said["diffusers"]  # it refuses that layout
    assert main(["export", DICT_FILE, "--format", "detsd", "--output", "own"]) == 0
    # Of other tools, those that read its file go by a name which is not the word.
    assert capsys.readouterr().out.splitlines()[2:] == ["  detsd: Det Logo"]
    assert "  stable-diffusion.cpp: det_logo\n" in said["diffusers"]
    assert "  diffusers: det logo\n" in said["diffusers"]
    assert ":" not in said["onetrainer"].splitlines()[-1].replace("Det Logo:", "")
    with safe_open("all/kohya/Det_Logo.safetensors", "pt") as f:
        hint = f.metadata()["modelspec.usage_hint"]
    assert "embedding:Det_Logo in ComfyUI" in hint
    assert "<Det_Logo> in InvokeAI" in hint
    write_concepts(
        [dataclasses.replace(concept, embeddings=(concept.embeddings[0] + 1,))], tmp_path
    )
    assert main(["export", DICT_FILE, "--format", "diffusers", "--output", "all"]) == 2
    assert "already exists and holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("Det Logo_7", "<Det_Logo_7>"),
        ("straßen-logo", "<stra_en-logo>, after renaming it to stra_en-logo there"),
        ("логотип", "<concept>, after renaming it to concept there"),
    ],
)
def test_invokeai_needs_a_name_of_ascii_letters(word, said):
    """It silently ignores any other <name> in a prompt."""
    assert prompts(dataclasses.replace(CONCEPTS[0], name=word), "kohya")["InvokeAI"] == said


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_format_has_its_tools(layout):
    assert (layout in READERS[1]) == (layout != "sdxl")
    assert (layout in READERS[2]) == (layout != "a1111")
    assert {t for table in READERS.values() for ts in table.values() for t in ts} == {*PROMPTS}


# ---- what is no concept, and what means harm -----------------------------------------------------


class Trap:
    """An object that would leave a file called `ran` if it were unpickled."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, kind)
    return stream.getvalue()


FILES = {
    "empty.pt": (b"", "is empty"),
    "noise.pt": (bytes(range(256)), "a damaged file, or one of an unknown kind"),
    "text.pt": (b"a text\n" * 500, "is a text file, not a concept"),
    "umlaut.txt": ("ä".encode() * 2000, "is a text file, not a concept"),
    "experiment.yaml": (b"name: x\n", "is a YAML file, not a concept"),
    "photo.PT": (picture("JPEG"), r"is a picture \(JPEG\)"),
    "photo.bin": (picture("WEBP"), r"is a picture \(WebP\)"),
    "photo.png": (picture("PNG"), r"is a picture \(PNG\), not a concept"),
    "cut.png": (picture("PNG")[:40], r"is damaged \(cut short\)"),
    "page.safetensors": (b"\n<!DOCTYPE html><html>", r"is a web page \(HTML\).*download the file"),
    "page.pt": (b"<HTML lang='en'>", "is a web page"),
    "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "packed.pt": (b"\x1f\x8b\x08", r"is an archive \(gzip\).*unpack it"),
    "model.pt": (b"GGUF\3\0\0\0", r"is a whole model \(GGUF\)"),
    "huge-header.safetensors": (struct.pack("<Q", 10**11) + b"{" * 9, "is damaged .cut short: its"),
    "no-json.safetensors": (struct.pack("<Q", 9) + b"{" * 9, "its header is not JSON"),
    "list.pt": (pickle.dumps([1]), "is damaged"),
    "trap.pt": (pickle.dumps(Trap(), 2), r"trap\.pt holds code \(.*open\), which is not run"),
    "trap4.bin": (pickle.dumps(Trap(), 4), r"holds code \(.*open\), which is not run"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_concept_is_called_what_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_concepts(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


TABLES = {
    "code": ({"x": Trap()}, r"holds code \(.*open\), which is not run"),
    "module": (torch.nn.Linear(2, 2), r"holds code \(torch.nn.modules.linear.Linear"),
    "nothing": ({}, "holds no concept"),
    "numbers": ({1: torch.ones(2)}, "PyTorch file of another kind"),
    "texts": (["a", "b"], "PyTorch file of another kind"),
    "optimizer": ({"state": {}, "param_groups": []}, "PyTorch file of another kind"),
    "lora": ({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, "is a LoRA"),
    "model": ({"state_dict": {"model.diffusion_model.x": torch.ones(2)}}, "is a whole model"),
    "layer": ({"encoder.0.weight": torch.ones(2, 2)}, "is part of a model"),
    "table": ({"string_to_param": {"*": 1}, "name": "x"}, "are a int, not a matrix"),
    "params": ({"string_to_param": [1]}, "string_to_param is not a dictionary"),
    "nan": ({"x": torch.full((1, 4), float("nan"))}, "not finite"),
    "infinite": ({"x": torch.full((1, 4), 1e300, dtype=torch.float64)}, "not finite"),
    "integers": ({"x": torch.ones(1, 4, dtype=torch.long)}, "not a matrix of floating point"),
    "cube": ({"x": torch.ones(1, 2, 4)}, r"shape \(1, 2, 4\), not a matrix"),
    "no rows": ({"x": torch.ones(0, 768)}, r"shape \(0, 768\), not a matrix"),
    "sparse": ({"x": torch.ones(2, 2).to_sparse()}, "not a matrix"),
    "meta": ({"x": torch.ones(2, 2, device="meta")}, "not a matrix"),
    # A few bytes that describe 4 TB.
    "stretched": ({"x": torch.ones(1, 1).expand(10**9, 1000)}, r"1000000000, 1000\), not a matrix"),
    "uneven": ({"clip_l": TWO[0], "clip_g": TWO[1][:2]}, "a different number of rows"),
    "output": ({"emp_params": ONE[0] * 0, "emp_params_out": ONE[0]}, "behind the text encoder"),
    "flux": ({"clip_l": ONE[0], "t5": torch.ones(3, 4096)}, r"encoders \(it contains 't5'"),
    "newline": ({"a\nb": torch.ones(1, 4)}, r"give it a word such as 'a-b': .*=my-word"),
    "long": ({"x" * 10**6: torch.ones(1, 4)}, "has 1000000 characters, more than 100"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_tables_that_are_no_concept(tmp_path, monkeypatch, name, zipped):
    monkeypatch.chdir(tmp_path)
    table, message = TABLES[name]
    path = pickled(tmp_path / "x", table, zipped=zipped)
    with pytest.raises(UserError, match=message) as caught:
        read_concepts(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) * 2 + 300
    assert not (tmp_path / "ran").exists()


def test_networks_as_safetensors(tmp_path):
    rows = torch.ones(2, 2)
    for key, kind in {
        "lora_unet_down.lora_up.weight": "a LoRA",
        "unet.down_blocks.0.lora_A.weight": "a LoRA",
        "model.diffusion_model.out.2.bias": "a whole model",
        "down_blocks.0.conv.weight": "part of a model",
    }.items():
        with pytest.raises(UserError, match=f"is {kind}, not a concept"):
            read_concepts(tensors(tmp_path / "x", {key: rows}))
    save_file({"lora_girl": rows}, tmp_path / "word.safetensors")
    assert read_concepts(tmp_path / "word.safetensors")[0].name == "lora_girl"


def test_sizes_are_bounded_before_reading(tmp_path, monkeypatch):
    """A zip bomb is refused; so are pickles, safetensors files and pictures above any concept."""
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}, 2))
        with archive.open("bomb/data/0", "w", force_zip64=True) as member:
            for _ in range(100):
                member.write(bytes(2**18))
    assert bomb.stat().st_size < 10**5
    model = pickled(tmp_path / "model", {"model.diffusion_model.x": torch.ones(2**10)}, ".ckpt")
    monkeypatch.setattr(torch, "load", None)  # nothing must get that far
    monkeypatch.setattr(safe_load, "MAX_BYTES", 2**11)
    with pytest.raises(UserError, match=r"an archive that unpacks to 0\.0 GB"):
        read_concepts(bomb)
    with pytest.raises(UserError, match="is a whole model"):
        read_concepts(model)
    for writer in (kohya, kohya_pt):
        with pytest.raises(UserError, match=r"GB, not a concept"):
            read_concepts(writer(tmp_path / "x", "", ONE))
    monkeypatch.setattr(safe_load, "MAX_HEADER", 10)
    with pytest.raises(UserError, match="with a header of"):
        read_concepts(kohya(tmp_path / "x", "", ONE))


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused(tmp_path, zipped):
    paths = [pickled(tmp_path / "a", {"x": ONE[0]}, zipped=zipped), kohya(tmp_path / "b", "", ONE)]
    for path in paths:
        whole = path.read_bytes()
        for length in (9, 40, 200, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match="damaged"):
                read_concepts(path)


def test_whatever_byte_is_wrong_there_is_a_concept_or_a_sentence(tmp_path):
    """The test reads 40 copies of every layout, each with one byte changed, inserted or removed."""
    rng = random.Random(0)
    for writer, rows, _ in CASES:
        path = writer(tmp_path / "x", "cat-toy", [r[:1, :4].clone() for r in rows])
        whole = path.read_bytes()
        for _ in range(40):
            at = rng.randrange(len(whole))
            middle = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
            path.unlink()  # writing over it, ext4 would wait for the disk
            path.write_bytes(whole[:at] + middle + whole[at + 1 :])
            with contextlib.suppress(UserError):
                assert read_concepts(path)
        path.unlink()


def test_archives_that_are_no_pytorch_files(tmp_path):
    zipped(tmp_path / "a.pt", {"../../x.txt": b"x"})
    with pytest.raises(UserError, match=r"is an archive \(zip\).*unpack it"):
        read_concepts(tmp_path / "a.pt")
    zipped(tmp_path / "b.pt", {"../data.pkl": pickle.dumps({}, 2)})
    with pytest.raises(UserError, match=r"is damaged|holds no concept"):
        read_concepts(tmp_path / "b.pt")
    assert sorted(p.name for p in tmp_path.parent.iterdir() if "x.txt" in p.name) == []


def test_odd_notes_are_no_notes(tmp_path):
    for odd in (5, None, torch.ones(3), ["x"], {}, ""):
        notes = dict.fromkeys(("name", "step", "sd_checkpoint", "sd_checkpoint_name"), odd)
        table = {"string_to_param": {"*": ONE[0]}, **notes, "initializer_strs": odd}
        (concept,) = read_concepts(pickled(tmp_path / "x", table))
        steps = odd if isinstance(odd, int) else None
        assert same(concept, LearnedConcept("x", "", (ONE[0],), steps=steps))
    (concept,) = read_concepts(pickled(tmp_path / "y", {"string_to_param": {7: ONE[0]}}))
    assert concept.name == "y"
    two = {"*": ONE[0], "b": ONE[0]}
    names = [c.name for c in read_concepts(pickled(tmp_path / "z", {"string_to_param": two}))]
    assert names == ["z", "b"]


BESIDE = {
    "step": np.int64(1200),
    "loss": np.float32(0.5),
    "done": np.bool_(True),
    "log": np.arange(3.0),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "kind", ["plain", "parameters", "a1111", "numpy", "half", "view", "empty note"]
)
def test_intact_files_are_read_whatever_pytorch_can_do(
    tmp_path, monkeypatch, kind, protocol, zipped
):
    """These have all pickle protocols, NumPy numbers beside rows, ParameterDict in both layouts."""
    rows, wanted = torch.randn(3, 8), None
    table = {
        "plain": {"cat-toy": rows},
        "parameters": {
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)}),
            "name": "cat-toy",
        },
        "a1111": {"string_to_param": {"*": rows.requires_grad_()}, "name": "cat-toy"},
        "numpy": {"string_to_param": {"*": rows}, "name": "cat-toy", **BESIDE},
        "half": {"cat-toy": rows.detach().bfloat16()},
        "view": {"cat-toy": torch.cat([rows, rows], 1).t()[:8].t()},
        "empty note": {"string_to_param": {"*": rows}, "name": "cat-toy", "x": torch.empty(0)},
    }[kind]
    path = tmp_path / "x.pt"
    torch.save(table, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", None)
    (concept,) = read_concepts(path)
    wanted = rows.detach().bfloat16().float() if kind == "half" else rows.detach()
    assert (concept.name, concept.steps) == ("cat-toy", 1200 if kind == "numpy" else None)
    assert torch.equal(concept.embeddings[0], wanted)


def test_a_storage_is_read_once_however_often_it_is_named(tmp_path):
    """A pickle of a few kilobytes names 64 KB 300 times."""
    storage = (
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    storage = storage[1:] + b"M\x00\x40tQ"
    named = b"\x80\x02]" + b"(" + storage * 300 + b"e."
    zipped(tmp_path / "a.pt", {"x/data.pkl": named, "x/data/0": bytes(4 * 0x4000)})
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        found = pickles.read_zip(archive, "x/data.pkl")
    assert len(found) == 300
    assert len({id(data) for _, data in found}) == 1


def test_a_pickle_changes_nothing_outside_itself(tmp_path):
    """BUILD on a class or function sets its attributes: only on ours, made for this file."""
    for name in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        attack = b"\x80\x02" + name + b"N}X\x05\x00\x00\x00stateK\x01s\x86b."
        data = {"x/data.pkl": attack, "x/version": b"3\n"}
        zipped(tmp_path / "a.pt", data)
        with pytest.raises(UserError):
            read_concepts(tmp_path / "a.pt")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "state")
    for code in (b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch.hub\nload\n"):
        zipped(tmp_path / "b.pt", {"x/data.pkl": b"\x80\x02" + code + b"X\x02\x00\x00\x00id\x85R."})
        with pytest.raises(UserError, match="holds code"):
            read_concepts(tmp_path / "b.pt")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in ("/dev/zero", tmp_path / "pipe.pt"):
        with pytest.raises(UserError, match="is a device, pipe or socket"):
            read_concepts(path)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(UserError, match=r"loop\.pt does not exist"):
        read_concepts(tmp_path / "loop.pt")
    for name, what in {
        "": "a folder without a concept",
        "model_index.json": "a whole model's folder",
        "adapter_config.json": "a LoRA's folder",
        "metrics.jsonl": "a run without a complete checkpoint",
    }.items():
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        if name:
            (folder / name).touch()
        with pytest.raises(UserError, match=f"is {what}"):
            read_concepts(folder)
    with pytest.raises(UserError, match="whole model"):
        read_concepts(ROOT / "demo_model")
