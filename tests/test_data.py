"""Images of every kind, prompts, and samples that depend only on (seed, index)."""

import copy
import dataclasses
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import grey_profile
from PIL import Image

from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.data.dataset import Batch, TrainingData
from detsd.data.folder import ImageFolder, folder_problem, lookalikes_of
from detsd.data.images import crop_or_resize, read_images, target_size
from detsd.data.latents import changed_images, encode_images
from detsd.data.prefetch import prefetch
from detsd.data.prompts import display_name, prompts_for, vary_tags
from detsd.utils import formats
from detsd.utils.errors import UserError
from detsd.utils.pictures import read_picture

RED = (200, 40, 30)


def concepts(folder, **values) -> ConceptsConfig:
    return ConceptsConfig(
        **({"concept_strs": ["blob-thing"], "initializer_strs": ["ball"], "img_dirs": [str(folder)],
            "learnable_properties": ["object"]} | values)
    )  # fmt: skip


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return np.asarray(read_picture(tmp_path / name).rgb).astype(int)


def test_jpeg_png_webp(tmp_path):
    for name in ("a.jpg", "a.PNG", "a.webp"):
        pixels = saved(tmp_path, name, Image.new("RGB", (20, 10), RED))
        assert pixels.shape == (10, 20, 3)
        assert abs(pixels - RED).max() <= 12


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), RED)
    image.paste((0, 0, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter clockwise to view
    pixels = saved(tmp_path, "a.png", image, exif=exif)
    assert pixels.shape == (20, 10, 3)
    assert pixels[2, 5].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_stated_colour(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    path = tmp_path / "a.png"
    image.convert(mode).save(path)
    for colour, value in (("white", 255), ("#204060", (0x20, 0x40, 0x60))):
        pixels = np.asarray(read_picture(path, colour).rgb)
        assert (pixels[4, 6] == value).all()
        assert abs(int(pixels[4, 1, 0]) - 200) <= 2


def test_cmyk_grey_palette_and_one_bit(tmp_path):
    assert saved(tmp_path, "c.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))[4, 4, 0] > 200
    assert (saved(tmp_path, "l.png", Image.new("L", (8, 8), 77)) == 77).all()
    assert (saved(tmp_path, "1.png", Image.new("1", (8, 8), 1)) == 255).all()
    palette = Image.new("RGB", (8, 8), RED).quantize(4)
    assert abs(saved(tmp_path, "p.gif", palette)[4, 4] - RED).max() <= 2


def test_sixteen_bit_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    pixels = saved(tmp_path, "a.png", Image.fromarray(ramp))[..., 0].ravel()
    assert abs(pixels - np.linspace(0, 255, 64)).max() <= 1


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path):
    """Its largest value may fit into 8 bits."""
    values = np.full((8, 8), 200, np.uint16)
    for name in ("dark.png", "dark.tiff", "dark.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(read_picture(tmp_path / name).rgb).max() <= 1, name


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, (0, 0, 0))]
    pixels = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert abs(pixels[4, 4] - RED).max() <= 2


def test_centre_crop_and_squeeze():
    image = Image.new("RGB", (300, 100))
    image.paste(RED, (100, 0, 200, 100))
    cropped = np.asarray(crop_or_resize(image, (32, 32), center_crop=True))
    squeezed = np.asarray(crop_or_resize(image, (32, 32), center_crop=False))
    assert cropped.shape == squeezed.shape == (32, 32, 3)
    assert (cropped[16, :, 0] > 150).mean() > 0.9
    assert 0.25 < (squeezed[16, :, 0] > 150).mean() < 0.42


def test_unreadable_files_are_named_and_skipped(tmp_path, caplog):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not an image")
    (tmp_path / "notes.md").write_text("no image")
    caplog.set_level(logging.WARNING)
    images = list(read_images(tmp_path, concepts(tmp_path), 32, "key"))
    assert [i.path.name for i in images] == ["good.png"]
    assert "bad.jpg" in caplog.text
    assert "notes.md" not in caplog.text


def test_what_is_passed_over_is_named(tmp_path, caplog, monkeypatch):
    """One JPEG file and three HEIC files must not train on one picture silently."""
    caplog.set_level(logging.WARNING)
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg")
    for name in ("b.heic", "c.HEIC", "d.heic", "e.mp4", "a.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8), RED).save(tmp_path / "more" / "f.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(formats, "register_heif_opener", None)
    assert len(list(read_images(tmp_path, concepts(tmp_path), 32, "key"))) == 1
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == (
        f"{tmp_path}: skipping 3 .heic, 1 .mp4, the images in the folder more inside it; "
        "run pip install pillow-heif to read HEIC"
    )
    only = tmp_path / "only"
    only.mkdir()
    (only / "x.heic").write_bytes(b"?")
    with pytest.raises(UserError, match="no readable image.*1 .heic; run pip install"):
        list(read_images(only, concepts(only), 32, "key"))


def test_heic_is_read_where_its_reader_is_installed(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.HEIC")
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setattr(
        formats, "register_heif_opener", lambda: Image.EXTENSION.update({".heic": "PNG"})
    )
    assert ImageFolder.scan(tmp_path).passed_over == ""
    assert len(list(read_images(tmp_path, concepts(tmp_path), 32, "key"))) == 1


def test_a_file_name_that_is_no_utf8(tmp_path):
    """The picture is read; its name gives no words."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    Image.new("RGB", (8, 8), RED).save(path)
    assert len(list(read_images(tmp_path, concepts(tmp_path), 32, "key"))) == 1
    assert display_name(path) == r"caf\xe9.png"
    prompts_for(path, "x", "object", concepts(tmp_path))
    with pytest.raises(UserError, match=r"caf\\xe9.png: the file name is not UTF-8"):
        prompts_for(path, "x", "object", concepts(tmp_path, append_file_name_to_text=True))


def test_empty_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"concepts.img_dirs\[0\].*no readable image"):
        list(read_images(tmp_path, concepts(tmp_path), 32, "concepts.img_dirs[0]"))
    with pytest.raises(UserError, match="does not exist"):
        list(read_images(tmp_path / "gone", concepts(tmp_path), 32, "concepts.img_dirs[0]"))


def test_prompts(tmp_path):
    path = tmp_path / "on_a_dark_beach.jpg"
    plain = prompts_for(path, "blob-thing", "object", concepts(tmp_path))
    assert "a photo of a blob-thing" in plain
    assert len(plain) == 27
    style = prompts_for(path, "blob-thing", "style", concepts(tmp_path))
    assert "a painting in the style of blob-thing" in style
    named = prompts_for(
        path, "x", "object",
        concepts(tmp_path, append_file_name_to_text=True, num_blank_prompts=2, num_a_prompts=1),
    )  # fmt: skip
    assert named[0] == "a photo of a x on a dark beach"
    assert named.count("x on a dark beach") == 2
    assert named.count("a x on a dark beach") == 1


def test_samples_are_a_function_of_seed_and_index(model, photos):
    first, again, other = (TrainingData(concepts(photos), model, seed, 2) for seed in (1, 1, 2))
    for i in (5, 0, 31):
        a, b, c = first.sample(i), again.sample(i), other.sample(i)
        assert (a.prompt, a.t) == (b.prompt, b.t)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.noise, b.noise)
        assert not torch.equal(a.noise, c.noise)


def test_noise_does_not_depend_on_the_memory_of_latents(model, photos):
    """PyTorch's randn_like draws other noise for latents in channels-last memory."""
    vae = copy.deepcopy(model.vae).to(memory_format=torch.channels_last)
    models = (model, dataclasses.replace(model, vae=vae))
    plain, last = (TrainingData(concepts(photos), m, 1, 2).sample(5) for m in models)
    assert torch.equal(plain.noise, last.noise)
    torch.testing.assert_close(plain.x, last.x)


def test_posterior_is_drawn_anew_and_every_image_comes_up(model, photos):
    d = TrainingData(concepts(photos, append_file_name_to_text=True), model, 1, 2)
    n = len(d.images)
    drawn = [d.sample(i) for i in range(2 * n)]
    assert len({float(e.x.sum()) for e in drawn}) == 2 * n
    for epoch in (drawn[:n], drawn[n:]):
        assert len({e.prompt.split()[-1] for e in epoch}) == n  # "... on a table 7"


def test_timesteps_are_uniform_and_spread(model, photos):
    d = TrainingData(concepts(photos), model, 1, 2)
    times = np.array([d.sample(i).t for i in range(64)])
    counts = np.histogram(times, bins=8, range=(0, 1000))[0]
    assert counts.min() >= 7
    assert counts.max() <= 9


def test_work_ahead_keeps_its_order_and_stays_near():
    """Three threads hold only a few results that have not been taken."""
    begun = []

    def square(n):
        begun.append(n)
        return n * n

    for n, result in enumerate(prefetch(square, range(50), 3)):
        assert result == n * n
        assert len(begun) <= n + 1 + 2 * 3
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda n: 1 // n, [1, 0], 1))


def test_images_encoded_at_once_are_those_encoded_alone(model, photos):
    images = [i.image for i in read_images(photos, concepts(photos), 32, "key")]
    together = encode_images(model, images, True)
    assert len(together) == 12
    for image, (mean, std) in zip(images, together, strict=True):
        ((alone, spread),) = encode_images(model, [image], True)
        assert mean.shape == std.shape == (2, 4, 8, 8)
        torch.testing.assert_close(mean, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, spread, rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_samples(model, photos):
    d = TrainingData(concepts(photos), model, 1, 2)
    samples = [d.sample(i) for i in (5, 6, 7)]
    cpu = torch.device("cpu")
    batch = Batch.of(samples).pinned(cpu).on(cpu)
    assert batch.prompts == [e.prompt for e in samples]
    assert batch.t.tolist() == [e.t for e in samples]
    for k, e in enumerate(samples):
        assert torch.equal(batch.x[k], e.x)
        assert torch.equal(batch.noise[k], e.noise)


def test_an_epoch_is_shuffled_once(model, photos):
    d = TrainingData(concepts(photos), model, 1, 2)
    n = len(d.images)
    for first in range(0, 3 * n, 4):  # some batches begin in one epoch and end in the next
        for i in range(first, first + 4):
            d.sample(i)
    assert d._order.cache_info().misses == 3 + (3 * n % 4 > 0)


def test_flips_are_separate_views(model, photos):
    plain = TrainingData(concepts(photos), model, 1, 2)
    flipped = TrainingData(concepts(photos, horizontal_flip=True), model, 1, 2)
    assert plain.images[0].mean.shape[0] == 1
    assert flipped.images[0].mean.shape[0] == 2
    torch.testing.assert_close(flipped.images[0].mean[0], plain.images[0].mean[0])
    assert not torch.equal(flipped.images[0].mean[1], plain.images[0].mean[0])


def test_every_change_of_the_images_shows_in_their_digests(model, photos, tmp_path):
    def digests(folder, **options):
        config = concepts(folder, use_caption_files=True, **options)
        return TrainingData(config, model, seed=1, max_validation=2).digests

    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    before = digests(folder)
    assert len(before) == 12
    assert changed_images(before, digests(folder)) == ""
    Image.new("RGB", (40, 48), RED).save(folder / "on_a_table_3.png")
    (folder / "on_a_table_4.txt").write_text("{} at noon")
    (folder / "on_a_table_5.png").unlink()
    Image.new("RGB", (40, 48), RED).save(folder / "a.png")
    assert changed_images(before, digests(folder)) == (
        "new: blob-thing/a.png; gone: blob-thing/on_a_table_5.png; changed: "
        "blob-thing/on_a_table_3.png, blob-thing/on_a_table_4.png"
    )


def test_held_out_images_are_not_trained_on(model, photos, tmp_path):
    d = TrainingData(concepts(photos), model, 1, 8)
    assert d.held_out
    assert {s.path for s in d.images}.isdisjoint({s.path for s in d.validation})
    assert len(d.images) + len(d.validation) == 12
    for k in range(3):
        Image.new("RGB", (8, 8), (k * 80, 9, 9)).save(tmp_path / f"{k}.png")
    few = TrainingData(concepts(tmp_path), model, 1, 8)
    assert not few.held_out
    assert len(few.images) == len(few.validation) == 3


def picture_with_mask(folder, name, box, size=(48, 40)):
    """Write a picture with a subject in `box`, transparent around it, and one on white beside a
    mask."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mask = Image.new("L", size)
    mask.paste(255, box)
    cut = ground.copy()
    cut.putalpha(mask)
    if "alpha" in name:
        cut.save(folder / f"{name}.png")
    else:
        white = Image.new("RGBA", size, "white")
        Image.alpha_composite(white, cut).convert("RGB").save(folder / f"{name}.png")
        mask.save(folder / f"{name}-masklabel.png")


def test_a_mask_is_cut_and_mirrored_with_its_picture(model, tmp_path):
    """40 x 40 of 48 x 40 pixels remain, scaled to 32 x 32: 8 x 8 latents of 5 pixels each."""
    picture_with_mask(tmp_path, "a", (4, 0, 19, 20))  # the crop begins at pixel 4
    for crop, wide in ((True, 3), (False, 2.5)):
        config = concepts(tmp_path, mask="files", horizontal_flip=True, center_crop=crop)
        d = TrainingData(config, model, 1, 2)
        (image,) = d.images
        assert image.mask.shape == (2, 1, 8, 8)
        assert image.mask[0].sum() == pytest.approx(4 * wide, abs=0.05)
        assert torch.equal(image.mask[1], image.mask[0].flip(-1))
        if crop:
            assert image.mask[0, 0, :4, :3].eq(1).all()
        for e in map(d.sample, range(8)):
            assert any(torch.equal(e.mask, view) for view in image.mask)
        assert {float(d.sample(i).mask[0, 0, 0]) for i in range(20)} == {
            float(view[0, 0, 0]) for view in image.mask
        }


def test_a_transparent_ground_is_a_mask_file_of_the_same(model, tmp_path):
    found = []
    for kind in ("alpha", "files"):
        picture_with_mask(tmp_path / kind, f"a_{kind}", (10, 6, 31, 33))
        d = TrainingData(concepts(tmp_path / kind, mask=kind), model, 1, 2)
        found.append(d)
        batch = Batch.of([d.sample(i) for i in range(3)])
        assert batch.on(torch.device("cpu")).mask.shape == (3, 1, 8, 8)
    assert list(found[0].digests.values()) == list(found[1].digests.values())
    assert torch.equal(found[0].sample(5).x, found[1].sample(5).x)
    assert torch.equal(found[0].sample(5).mask, found[1].sample(5).mask)
    plain = TrainingData(concepts(tmp_path / "files"), model, 1, 2)  # the mask is not a picture
    assert len(plain.images) == 1
    assert plain.sample(5).mask is None
    assert plain.digests != found[1].digests


def test_a_mask_with_a_profile_keeps_its_numbers(model, tmp_path):
    Image.new("RGB", (32, 32), RED).save(tmp_path / "a.png")
    mask = Image.new("L", (32, 32), 64)
    mask.save(tmp_path / "a-masklabel.png", icc_profile=grey_profile())
    d = TrainingData(concepts(tmp_path, mask="files"), model, 1, 2)
    assert d.images[0].mask.unique().tolist() == pytest.approx([64 / 255])


def test_masks_that_are_missing_are_told_at_once(tmp_path):
    for kind, words in (
        ("files", r"b.png has no mask; put b-masklabel.png beside b.png, .*\(2 in all\)"),
        ("alpha", r"b.png has no mask; make the background of b.png transparent"),
    ):
        folder = tmp_path / kind
        picture_with_mask(folder, f"a_{kind}", (10, 6, 31, 33))
        for name in ("b.png", "c.png"):
            Image.new("RGB", (8, 8), RED).save(folder / name)
        assert re.search(words, folder_problem(str(folder), mask=kind))
        assert folder_problem(str(folder), mask="none") is None
        assert ImageFolder.scan(folder).passed_over == ""
        for name in ("b.png", "c.png"):
            (folder / name).unlink()
        assert folder_problem(str(folder), mask=kind) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: Image.new("L", (48, 40)).save(p), "black in the whole area"),
        (lambda p: Image.new("L", (20, 40), 255).save(p), "20 x 40 .* a.png is 48 x 40; make"),
        (lambda p: p.write_text("?"), "cannot be read as a mask"),
    ],
)
def test_masks_that_are_no_use_are_refused(model, tmp_path, spoil, words):
    picture_with_mask(tmp_path, "a", (4, 0, 19, 20))
    spoil(tmp_path / "a-masklabel.png")
    with pytest.raises(UserError, match=f"a-masklabel.png.* {words}"):
        TrainingData(concepts(tmp_path, mask="files"), model, 1, 2)


def test_a_wholly_transparent_picture_is_refused(model, tmp_path):
    picture_with_mask(tmp_path, "alpha", (0, 0, 0, 0))
    with pytest.raises(UserError, match=r"alpha.png is transparent in the whole area"):
        TrainingData(concepts(tmp_path, mask="alpha"), model, 1, 2)


def test_tags_are_a_function_of_the_index(model, photos, tmp_path):
    """Tags are shuffled and some dropped; the concept's tag stays, and the rest of the sample."""
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    tags = ["a photo", "{} on a hill", "at noon", "sharp"]
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text(", ".join(tags))
    tags[1] = "blob-thing on a hill"

    def drawn(**options):
        config = concepts(folder, use_caption_files=True, **options)
        d = TrainingData(config, model, 1, 2)
        return d, [d.sample(i) for i in range(60)]

    _, plain = drawn()
    assert {e.prompt for e in plain} == {", ".join(tags)}
    _, same = drawn(shuffle_tags=True)
    d, varied = drawn(shuffle_tags=True, tag_drop_out=0.3)
    assert d.sample(31).prompt == varied[31].prompt
    assert d.validation_samples(0, 2)[0].prompt == ", ".join(tags)
    assert len({e.prompt for e in same}) == 6
    for a, b, c in zip(plain, same, varied, strict=True):
        assert b.prompt.startswith(tags[1])
        assert sorted(b.prompt.split(", ")) == sorted(tags)
        assert tags[1] in c.prompt
        assert a.t == b.t == c.t
        assert torch.equal(a.x, c.x)
    left = [len(e.prompt.split(", ")) - 1 for e in varied]
    assert 0.6 < np.mean(left) / 3 < 0.8
    for e in drawn(tag_drop_out=0.5)[1]:  # not shuffled: in their original order
        said = e.prompt.split(", ")
        assert said == [tag for tag in tags if tag in said]


def test_concepts_stand_in_each_others_line_up(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert lookalikes_of(a, "a-thing", [f"{tmp_path}/./a", b], "measure.lineup") == [b]
    assert lookalikes_of(b, "b-thing", [a, b], "measure.lineup") == [a]
    assert lookalikes_of(a, "a-thing", [], "measure.lineup") == []


@pytest.mark.parametrize("word", ["red, dot", "a,b-thing"])
def test_a_word_with_a_comma_is_no_two_tags(word):
    prompt, rng = f"on grass, a photo of a {word} at noon, big", np.random.default_rng(1)
    words = PromptRewriter({word: "x"})
    assert vary_tags(prompt, words, rng, True, 1.0) == f"a photo of a {word} at noon"
    for _ in range(9):
        first, second = f"a photo of a {word} at noon, ", {"big, on grass", "on grass, big"}
        said = vary_tags(prompt, words, rng, True, 0.0)
        assert said.startswith(first)
        assert said.removeprefix(first) in second


@pytest.mark.parametrize(("aspect", "shape"), [(1.5, (40, 24)), (0.5, (24, 48)), (1, (32, 32))])
def test_pictures_are_cut_to_an_aspect(model, tmp_path, aspect, shape):
    """Masks are cut like their pictures, and noise has the latents' shape."""
    assert target_size(32, aspect) == shape
    picture_with_mask(tmp_path, "a", (0, 0, 24, 40))  # the left half
    d = TrainingData(concepts(tmp_path, img_aspect=aspect, mask="files"), model, 1, 2)
    e = d.sample(3)
    assert e.x.shape == e.noise.shape == (4, shape[1] // 4, shape[0] // 4)
    assert e.mask.shape == (1, *e.x.shape[1:])
    assert e.mask.mean() == pytest.approx(0.5, abs=0.01)
    assert e.frame[-2:] == shape[::-1]
    assert d.pictures["blob-thing"][0].size == shape


def test_the_shape_of_a_photo_has_as_many_pixels():
    for size, aspect, shape in ((512, 1.5, (624, 416)), (512, 1, (512, 512)), (64, 1.5, (80, 56))):
        assert target_size(size, aspect) == shape
    assert target_size(8, 4) == (16, 8)
