"""Aspect buckets, and the shape of a concept's samples everywhere."""

import json
import logging
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLES
from forked import in_two_ranks
from PIL import Image, ImageDraw
from test_finetune import finetune, metrics_of, rows_of, stop_after
from tiny import save_tiny_sdxl

from detsd.__main__ import main
from detsd.app.form import ImageSettings, make_job
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import read_concepts
from detsd.concepts.writing import encode, write_concepts
from detsd.config import ConceptsConfig, ModelConfig, load_config
from detsd.data.dataset import Batch, Stream, TrainingData
from detsd.data.images import bucket_of, read_images, squared, target_size, target_sizes
from detsd.evaluate.lookalikes import to_squares
from detsd.models.base import BaseModel
from detsd.models.loading import load_base_model
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils import contact_sheets
from detsd.utils.errors import UserError

SIZES = {"wide": (96, 48), "tall": (48, 96), "square": (64, 64)}
COUNTS = {"wide": 5, "tall": 4, "square": 3}
CUT = {"wide": (48, 24), "tall": (24, 48), "square": (32, 32)}  # for the tiny model of 32 pixels


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Write twelve photos of three shapes, most of them landscapes."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(1)
    for kind, count in COUNTS.items():
        width, height = SIZES[kind]
        for k in range(count):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}_{k}.png")
    return folder


def concepts(folder, **values) -> ConceptsConfig:
    lists = {
        "concept_strs": ["blob-thing"],
        "initializer_strs": ["ball"],
        "img_dirs": [str(folder)],
    }
    return ConceptsConfig(**lists, **{"img_aspect": "buckets"} | values)


def shape_of(sample) -> tuple[int, int]:
    height, width = sample.x.shape[1:]
    return width * 4, height * 4


# ---- which shapes --------------------------------------------------------------------------------


def test_buckets_have_about_the_same_number_of_pixels():
    """They are multiples of the step, symmetric, and include Stable Diffusion's usual ones."""
    for size, step in ((512, 64), (768, 64), (1024, 64), (64, 16), (32, 8)):
        found = target_sizes(SimpleNamespace(img_aspect="buckets"), size, step)
        assert (size, size) in found
        assert {shape[::-1] for shape in found} == set(found)
        assert len(found) == len(set(found)) >= 9
        for width, height in found:
            assert width % step == height % step == 0
            assert abs(width * height / size**2 - 1) < 0.13
            assert 1 / 4 <= width / height <= 4
    sd = target_sizes(SimpleNamespace(img_aspect="buckets"), 512, 64)
    assert {(512, 512), (576, 448), (640, 448), (704, 384), (1024, 256), (448, 640)} <= set(sd)
    assert target_sizes(SimpleNamespace(img_aspect=1.5), 512) == [target_size(512, 1.5)]


@pytest.mark.parametrize(
    ("scale", "blocks", "size", "step"),
    [(8, 4, 512, 64), (8, 4, 768, 64), (8, 3, 1024, 64), (4, 3, 64, 16), (4, 2, 32, 8)],
)
def test_the_step_is_what_vae_and_unet_halve(scale, blocks, size, step):
    unet = SimpleNamespace(config=SimpleNamespace(down_block_types=[""] * blocks))
    parts = SimpleNamespace(vae_scale_factor=scale, image_size=size, unet=unet)
    assert BaseModel.bucket_step.fget(parts) == step


def test_the_step_of_the_bundled_model():
    config = json.loads((ROOT / "demo_model" / "unet" / "config.json").read_text())
    vae = json.loads((ROOT / "demo_model" / "vae" / "config.json").read_text())
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    unet = SimpleNamespace(config=SimpleNamespace(**config))
    parts = SimpleNamespace(
        vae_scale_factor=scale, image_size=config["sample_size"] * scale, unet=unet
    )
    assert BaseModel.bucket_step.fget(parts) == 16


def test_a_picture_goes_to_the_bucket_that_keeps_most_of_it():
    shapes = target_sizes(SimpleNamespace(img_aspect="buckets"), 512, 64)
    known = {(3, 2): (640, 448), (4, 3): (576, 448), (16, 9): (704, 384), (1, 1): (512, 512)}
    known |= {(21, 9): (832, 320), (10, 1): (1024, 256), (11, 10): (512, 512)}
    for (width, height), shape in known.items():
        for scale in (1, 300):
            assert bucket_of((width * scale, height * scale), shapes) == shape
            assert bucket_of((height * scale, width * scale), shapes) == shape[::-1]
    rng = np.random.default_rng(0)
    for width, height in rng.integers(50, 2000, (200, 2)):
        kept = [min(width / w, height / h) ** 2 * w * h / (width * height) for w, h in shapes]
        w, h = bucket_of((width, height), shapes)
        assert min(width / w, height / h) ** 2 * w * h / (width * height) == pytest.approx(
            max(kept)
        )


def test_what_an_aspect_may_be(experiment):
    for text, message in (
        ("bucket", "concepts.img_aspect is 'bucket' but must be a number or buckets"),
        ("5", "concepts.img_aspect is 5.0 but must be at most 4"),
        ("0.1", "concepts.img_aspect is 0.1 but must be at least 0.25"),
        ("[buckets]", r"concepts.img_aspect is \['buckets'\] but must be a number or buckets"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(experiment(), [f"concepts.img_aspect={text}"])
    assert load_config(experiment(), ["concepts.img_aspect=buckets"]).concepts.img_aspect == (
        "buckets"
    )
    assert load_config(experiment()).concepts.img_aspect == 1.0


# ---- training ------------------------------------------------------------------------------------


def test_pictures_are_cut_to_their_buckets_with_masks_and_time_ids(model, mixed, tmp_path):
    folder = shutil.copytree(mixed, tmp_path / "mixed")
    for path in list(folder.iterdir()):
        with Image.open(path) as image:
            mask = Image.new("L", image.size)
            mask.paste(255, (0, 0, image.width // 2, image.height))  # the left half
        mask.save(folder / f"{path.stem}-masklabel.png")
    data = TrainingData(concepts(folder, mask="files", horizontal_flip=True), model, 1, 2)
    assert data.shapes == {"blob-thing": {CUT[kind]: COUNTS[kind] for kind in COUNTS}}
    for image in data.images + data.validation:
        kind = image.path.stem.split("_")[0]
        width, height = CUT[kind]
        assert image.shape == (width, height)
        assert image.frame == (*SIZES[kind][::-1], 0, 0, height, width)
        assert image.mean.shape == image.std.shape == (2, 4, height // 4, width // 4)
        assert image.mask.shape == (2, 1, height // 4, width // 4)
        assert image.mask[0, 0, :, : width // 8].min() == 1
        assert image.mask[1, 0, :, : width // 8].max() == 0  # mirrored
    for k in range(len(data.validation)):
        assert Batch.of(data.validation_samples(k, 3)).x.shape[0] == 3


@pytest.mark.parametrize("samples_per_step", [1, 3, 8])
def test_the_samples_of_a_step_are_of_one_shape(model, mixed, samples_per_step):
    """All pictures appear equally often; a sample does not depend on the order of requests."""
    data = TrainingData(concepts(mixed), model, 3, 2, samples_per_step=samples_per_step)
    n = len(data.images)
    total = 2 * n * samples_per_step
    found = [data._image(i) for i in range(total)]
    steps = [found[k : k + samples_per_step] for k in range(0, total, samples_per_step)]
    assert all(len({image.shape for image in step}) == 1 for step in steps)
    assert set(Counter(image.path for image in found).values()) == {2 * samples_per_step}
    orders = [[step[0].shape for step in part] for part in (steps[:n], steps[n:])]
    assert Counter(orders[0]) == Counter(orders[1])
    assert orders[0] != orders[1]  # the next cycle has another order
    for shape in {image.shape for image in found}:  # each picture once per pass over its bucket
        own = [image.path for image in found if image.shape == shape]
        size = len(set(own))
        assert all(len(set(own[k : k + size])) == size for k in range(0, len(own), size))
    again = TrainingData(concepts(mixed), model, 3, 2, samples_per_step=samples_per_step)
    for i in np.random.default_rng(0).permutation(total)[:40].tolist():
        a, b = data.sample(i), again.sample(i)
        assert a.prompt == b.prompt
        assert a.t == b.t
        assert torch.equal(a.x, b.x)
        assert shape_of(a) == found[i].shape == a.frame[:3:-1]
    other = TrainingData(concepts(mixed), model, 4, 2, samples_per_step=samples_per_step)
    assert [other._image(i).path for i in range(total)] != [image.path for image in found]


@pytest.mark.parametrize("seed", [1, 2**31 - 1, 2**40 + 7])
@pytest.mark.parametrize("samples_per_step", [1, 8])
def test_pictures_of_one_shape_come_as_they_did(model, photos, seed, samples_per_step):
    """Their order is that of versions without buckets, with buckets and without."""
    for aspect in (1.0, 1.5, "buckets"):
        config = concepts(photos, img_aspect=aspect)
        data = TrainingData(config, model, seed, 2, samples_per_step=samples_per_step)
        n = len(data.images)
        for i in range(3 * n):
            epoch, place = divmod(i, n)
            order = np.random.default_rng((seed, Stream.ORDER, epoch)).permutation(n)
            assert data._image(i) is data.images[order[place]]


def test_what_buckets_say_before_training(model, tmp_path, caplog):
    """A picture near its bucket loses little; a strip of 10:1 still loses most."""
    for k, size in enumerate([(100, 40), (120, 40), (40, 100), (400, 40), (20, 30)]):
        Image.new("RGB", size, (9 * k, 5, 6)).save(tmp_path / f"{k}.png")
    caplog.set_level(logging.INFO)
    TrainingData(concepts(tmp_path), model, 1, 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 1 of 5 pictures is smaller than the bucket to train on and is enlarged "
        "(4.png is 20 x 30)",
        f"{tmp_path}: 1 of 5 pictures loses more than half in the crop; crop to the subject "
        "yourself, or set concepts.center_crop to false (3.png keeps 40%)",
    ]


def settings(mixed, **more) -> dict:
    return {"concepts": {"img_dirs": [str(mixed)], "img_aspect": "buckets"}, **more}


def test_a_run_in_buckets_goes_on_as_if_it_had_not_stopped(
    experiment, mixed, tmp_path, monkeypatch, capsys
):
    path = experiment(**settings(mixed, inference=SAMPLES))
    assert finetune(path, tmp_path / "whole") == 0
    assert "blob-thing: images in 3 buckets: 5 of 48 x 24, 4 of 24 x 48, 3 of 32 x 32" in (
        capsys.readouterr().out
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        finetune(path, tmp_path / "out")
    assert finetune(path, tmp_path / "out") == 0
    rows = [rows_of(tmp_path / name, 8)["blob-thing"] for name in ("whole", "out")]
    assert torch.equal(*rows)
    assert metrics_of(tmp_path / "whole")[8]["loss"] == metrics_of(tmp_path / "out")[8]["loss"]
    assert finetune(path, tmp_path / "out", "--set", "concepts.img_aspect=1",
                    "--set", "training.num_sgd_steps=12") == 2  # fmt: skip
    assert "concepts.img_aspect was 'buckets', is 1.0" in capsys.readouterr().err


@pytest.mark.slow
def test_layouts_agree_in_buckets(experiment, mixed, tmp_path):
    """One process of 8, two of 4 and four micro-batches of 2 train the same."""
    layouts = {"one": (8, 1), "two": (4, 1), "accumulated": (2, 4)}
    for name, (batch, accumulated) in layouts.items():
        training = {"train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        path = experiment(f"{name}.yaml", **settings(mixed, training=training))
        if name == "two":
            in_two_ranks(tmp_path, lambda path=path: finetune(path, tmp_path / "two"))
        else:
            assert finetune(path, tmp_path / name) == 0
    one = rows_of(tmp_path / "one", 8)["blob-thing"]
    for name in ("two", "accumulated"):
        torch.testing.assert_close(
            rows_of(tmp_path / name, 8)["blob-thing"], one, rtol=1e-5, atol=1e-6
        )
        for step, m in metrics_of(tmp_path / "one").items():
            assert metrics_of(tmp_path / name)[step]["loss"] == pytest.approx(m["loss"], rel=1e-5)


def test_a_batch_for_xl_has_the_time_ids_of_its_bucket(mixed, tmp_path):
    """The UNet accepts it."""
    model = load_base_model(ModelConfig(str(save_tiny_sdxl(tmp_path / "xl"))), torch.device("cpu"))
    data = TrainingData(concepts(mixed), model, 1, 2, samples_per_step=4)
    for step in range(len(data.images)):
        batch = Batch.of([data.sample(4 * step + k) for k in range(4)])
        height, width = (4 * side for side in batch.x.shape[2:])
        kind = next(kind for kind, shape in CUT.items() if shape == (width, height))
        assert batch.frames.tolist() == [[*SIZES[kind][::-1], 0, 0, height, width]] * 4
    cond = model.encode_prompts(batch.prompts, batch.frames)
    made = model.unet(
        batch.x, batch.t, encoder_hidden_states=cond.prompt_embeds,
        added_cond_kwargs=cond.added_cond_kwargs,
    ).sample  # fmt: skip
    assert made.shape == batch.x.shape


# ---- samples, evaluation, commands, page ---------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "shape"), [("buckets", (48, 24)), (1.5, (40, 24)), (0.5, (24, 48)), (1.0, None)]
)
def test_samples_have_the_shape_of_the_pictures(
    experiment, mixed, tmp_path, capsys, monkeypatch, aspect, shape
):
    """So it is in training, in the concept's file, and in the proposed grid."""
    given = settings(mixed, inference=SAMPLES)
    given["concepts"]["img_aspect"] = aspect
    out = tmp_path / "out"
    assert finetune(experiment(**given), out) == 0
    files = sorted((out / "samples").glob("*.png"))
    assert len(files) == 6
    assert {Image.open(file).size for file in files} == {shape or (32, 32)}
    for file in (out, out / "checkpoints" / "step-00000008" / "blob-thing.safetensors"):
        assert [c.resolution for c in read_concepts(file)] == [shape]
    assert (out / "before_after.png").is_file()
    command = re.search(r"^    python -m detsd (generate .*)$", capsys.readouterr().out, re.M)[1]
    assert ("grid.width" in command) == (shape is not None)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    images = list((tmp_path / "out-grid" / "images").glob("*.png"))
    assert {Image.open(file).size for file in images} == {shape or (32, 32)}


def test_most_pictures_decide_and_a_square_comes_before_a_strip():
    shapes = {
        "most": Counter({(48, 24): 2, (24, 48): 3, (32, 32): 1}),
        "square": Counter({(48, 24): 2, (32, 32): 2}),
        "landscape": Counter({(24, 48): 2, (48, 24): 2}),
        "nearest": Counter({(64, 16): 2, (24, 40): 2}),
    }
    found = TrainingData.resolutions.fget(SimpleNamespace(shapes=shapes))
    assert found == {
        "most": (24, 48), "square": None, "landscape": (48, 24), "nearest": (24, 40)
    }  # fmt: skip


def test_concepts_of_one_run_have_shapes_of_their_own(experiment, mixed, tmp_path):
    tall = tmp_path / "tall"
    tall.mkdir()
    for k in range(4):
        shutil.copy(mixed / f"tall_{k}.png", tall)
    given = settings(mixed)
    given["concepts"] |= {
        "img_dirs": [str(mixed), str(tall)], "concept_strs": ["blob-thing", "tall-thing"],
        "initializer_strs": ["red ball", "cat"],
    }  # fmt: skip
    prompts = ["a blob-thing", "a tall-thing", "a tall-thing and a blob-thing", "a cat"]
    given["inference"] = {"inference_prompts": prompts, "seeds": [0]}
    assert finetune(experiment(**given), tmp_path / "out") == 0
    sizes = [
        Image.open(tmp_path / "out" / "samples" / f"step-00000008-{k:03d}.png").size
        for k in range(4)
    ]
    assert sizes == [(48, 24), (24, 48), (24, 48), (32, 32)]


def test_a_run_of_an_earlier_version_keeps_its_squares(experiment, mixed, tmp_path):
    """Its first samples are squares, and the others are compared with them."""
    given = settings(mixed, inference=SAMPLES)
    given["concepts"]["img_aspect"] = 1.5
    path, out = experiment(**given), tmp_path / "out"
    assert finetune(path, out) == 0
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    begun = out / "checkpoints" / "step-00000004"
    (concept,) = read_concepts(begun)
    old = LearnedConcept(concept.name, concept.initializer, concept.embeddings, steps=4)
    write_concepts([old], begun)
    assert finetune(path, out) == 0
    assert Image.open(out / "samples" / "step-00000008-000.png").size == (32, 32)
    assert [c.resolution for c in read_concepts(out / "checkpoints" / "step-00000008")] == [None]


def test_an_evaluation_has_the_shape_of_the_concept(experiment, mixed, tmp_path, tiny_model):
    """This holds for a run, for a file copied from it, and for its initializer's samples."""
    run = tmp_path / "run"
    assert finetune(experiment(**settings(mixed)), run) == 0
    lone = tmp_path / "lone.safetensors"
    shutil.copy(run / "checkpoints" / "step-00000008" / "blob-thing.safetensors", lone)
    few = [
        f"--set={text}" for text in (
            "evaluation.num_samples=2", "evaluation.num_samples_per_prompt=1",
            "evaluation.prompts=a {} on grass", "evaluation.num_inference_steps=1",
        )
    ]  # fmt: skip
    clip = ["--clip", str(ROOT / "demo_model" / "clip"), "--model", str(tiny_model)]
    for source, more in ((run, []), (lone, ["--images", str(mixed)])):
        out = tmp_path / f"evaluated-{source.stem}"
        words = ["evaluate", str(source), *clip, *more, *few, "--output-dir", str(out)]
        assert main(words) == 0
        images = list((out / "images").glob("*.png"))
        assert len(images) == 6
        assert {Image.open(file).size for file in images} == {(48, 24)}
        assert (out / "samples.png").is_file()
    assert "resolution" in lone.read_bytes().decode("latin-1")


def test_measured_samples_have_the_shape_too(measuring, mixed, tmp_path):
    words = [f"concepts.img_dirs=[{mixed}]", "concepts.img_aspect=buckets"]
    words += ["inference.inference_prompts=[]", "training.num_sgd_steps=2"]
    options = [word for text in words for word in ("--set", text)]
    assert finetune(measuring, tmp_path / "out", *options) == 0
    assert 0 <= metrics_of(tmp_path / "out", "validation")[2]["score"] <= 1


@pytest.mark.parametrize("layout", ["detsd", "diffusers", "a1111", "kohya", "onetrainer"])
def test_every_layout_keeps_the_shape(tmp_path, layout):
    rows = torch.ones(2, 768)
    for resolution in ((768, 512), None):
        concept = LearnedConcept("blob-thing", "red ball", (rows,), resolution=resolution)
        ((name, data),) = encode([concept], layout).items()
        (tmp_path / name).write_bytes(data)
        (found,) = read_concepts(tmp_path / name)
        assert found.resolution == resolution
        if resolution is None:
            assert b"resolution" not in data
    header = encode([LearnedConcept("a", "", (rows,), resolution=(768, 512))], "kohya")
    assert b'"modelspec.resolution": "768x512"' in header["a.safetensors"]


@pytest.mark.parametrize(
    "text", ["0x64", "64x63", "9992x64", "64", "64x64x64", "-64x64", "64 x 64"]
)
def test_a_shape_that_no_image_can_have_is_none(tmp_path, text):
    entry = {"initializer_strs": "", "learned_embeddings": torch.ones(1, 16), "resolution": text}
    torch.save({"blob": entry}, tmp_path / "a.pt")
    assert read_concepts(tmp_path / "a.pt")[0].resolution is None


def test_the_page_takes_the_shape_of_the_concept(model, tmp_path):
    """The first concept in the prompt counts; an explicit shape comes first."""
    pipe = DetSDTextualInversionPipeline(
        load_base_model(ModelConfig(model.name), torch.device("cpu"))
    )
    for name, resolution in (("wide-one", (48, 24)), ("tall-one", (24, 48)), ("plain-one", None),
                             ("huge-one", (768, 512))):  # fmt: skip
        pipe.add([LearnedConcept(name, "cat", (torch.ones(1, 16),), resolution=resolution)], "", "")
    for prompt, given, size in (
        ("a wide-one", {}, (48, 24)),
        ("a tall-one by a wide-one", {}, (24, 48)),
        ("a plain-one by a wide-one", {}, (32, 32)),
        ("a cat", {}, (32, 32)),
        ("a huge-one", {}, (32, 32)),  # another model's size
        ("a wide-one", {"width": 32, "height": 40}, (32, 40)),
        ("a wide-one", {"height": 40}, (48, 40)),
    ):
        job = make_job(pipe, ImageSettings(prompt, scheduler="ddim", **given))
        assert (job.width, job.height) == size, prompt


# ---- what networks and sheets make of them -------------------------------------------------------


def test_a_network_sees_what_stands_to_one_side():
    """A picture that is not square is padded with its edges; a square one is unchanged."""
    image = Image.new("RGB", (96, 48), (250, 250, 250))
    ImageDraw.Draw(image).rectangle((0, 12, 11, 35), fill=(200, 0, 0))  # at the left edge
    for picture, axis in ((image, 0), (image.transpose(Image.Transpose.ROTATE_90), 1)):
        square = squared(picture)
        assert square.size == (96, 96)
        pixels = np.asarray(square)
        inside = pixels[24:72] if axis == 0 else pixels[:, 24:72]
        assert np.array_equal(inside, np.asarray(picture))
        edges = pixels[:24] if axis == 0 else pixels[:, :24].transpose(1, 0, 2)
        assert (edges == edges[0]).all()
        seen = to_squares([picture], 32)
        assert seen.shape == (1, 3, 32, 32)
        assert float(seen[:, 1].min()) < -0.8  # the mark; a centre crop would lose it
    plain = Image.new("RGB", (40, 40))
    assert squared(plain) is plain
    assert squared(Image.new("RGB", (5, 8))).size == (8, 8)


def test_a_sheet_of_several_shapes_shows_each_whole():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    sizes = [(96, 48), (48, 96), (64, 64), (48, 24)]
    tiles = [Image.new("RGB", size, color) for size, color in zip(sizes, colors, strict=True)]
    pixels = np.asarray(contact_sheets.sheet([tiles[:2], tiles[2:]], ["one", "two"]))
    for tile, color in zip(tiles, colors, strict=True):
        shown = contact_sheets.as_tile(tile, 4)
        assert (pixels == color).all(2).sum() == shown.width * shown.height
    even = contact_sheets.padded([tiles[:3], tiles[3:]])
    assert {tile.size for row in even for tile in row} == {(96, 96)}
    assert [(np.asarray(t) == c).all(2).sum() for t, c in zip(even[0], colors, strict=False)] == [
        96 * 48, 48 * 96, 96 * 96,
    ]  # fmt: skip
    ((same,),) = contact_sheets.padded([[tiles[0]]])
    assert same.tobytes() == tiles[0].tobytes()


def test_pictures_of_an_evaluation_keep_their_buckets(mixed):
    found = read_images(mixed, concepts(mixed), 32, "key", 8)
    assert {image.path.stem.split("_")[0]: image.image.size for image in found} == CUT
