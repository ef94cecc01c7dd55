"""Captions in every common layout, file names as words, and messages about a folder."""

import dataclasses
import json
import logging
import os

import pytest
import torch
from PIL import Image
from test_data import RED, concepts

from detsd.data.captions import caption_problem, file_words, find_captions
from detsd.data.dataset import TrainingData
from detsd.data.folder import ImageFolder, folder_problem
from detsd.data.images import read_images
from detsd.data.prompts import prompts_for
from detsd.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Write three different pictures."""
    for k in range(3):
        Image.new("RGB", (40, 48), (k * 80, 9, 9)).save(tmp_path / f"p{k}.png")
    return tmp_path


def captions(folder) -> dict[str, str]:
    found = find_captions(ImageFolder.scan(folder))
    return {path.name: text for path, text in found.items()}


def write(folder, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def metadata(*rows: dict) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def test_a_picture_is_left_out_neither_for_its_name_nor_for_lack_of_a_caption(tmp_path):
    """Hugging Face's image folders depend on the words train and test, and on metadata.jsonl."""
    names = ["a_test_print.png", "at_sea.png", "on_a_train.png"]
    for name in names:
        Image.new("RGB", (40, 48)).save(tmp_path / name)
    write(tmp_path, {"metadata.jsonl": metadata({"file_name": names[0], "text": "a print"})})
    assert [path.name for path in ImageFolder.scan(tmp_path).images] == names
    assert captions(tmp_path) == {names[0]: "a print"}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"p0.txt": "at noon"}, {"p0.png": "at noon"}),
        ({"p0.TXT": "at noon"}, {"p0.png": "at noon"}),
        ({"p0.caption": "at noon"}, {"p0.png": "at noon"}),
        ({"p0.png.txt": "at noon"}, {"p0.png": "at noon"}),
        ({"captions/p0.txt": "at noon"}, {"p0.png": "at noon"}),
        ({"p0.txt": "beside", "captions/p0.txt": "inside"}, {"p0.png": "beside"}),
        ({"p0.txt": "first", "p0.caption": "second"}, {"p0.png": "first"}),
        ({"p0.txt": "two\n lines\t here "}, {"p0.png": "two lines here"}),
        ({"p0.txt": "\ufeffNotepad's"}, {"p0.png": "Notepad's"}),
        ({"p0.txt": "007", "p1.txt": "None"}, {"p0.png": "007", "p1.png": "None"}),
        ({"q.txt": "of no picture"}, {}),
        (
            {
                "metadata.jsonl": metadata(
                    {"file_name": "p0.png", "text": "007"},
                    {"file_name": "./p1.png", "text": "None", "width": 3},
                    {"file_name": "gone.png", "text": "?"},
                    {"file_name": "p2.png", "text": None},
                )
            },
            {"p0.png": "007", "p1.png": "None"},
        ),
        (
            {"metadata.csv": 'file_name,text\np0.png,007\np1.png,"a, ""b"""\np2.png,None\n'},
            {"p0.png": "007", "p1.png": 'a, "b"', "p2.png": "None"},
        ),
        (
            {"metadata.csv": "\ufefffile_name,text\r\np0.png,at noon\r\n", "p0.txt": "own"},
            {"p0.png": "own"},
        ),
    ],
)
def test_captions_are_found_in_every_layout(folder, files, found):
    write(folder, files)
    assert captions(folder) == found
    assert ImageFolder.scan(folder).passed_over == ""


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"p0.txt": " "}, "p0.txt is empty; write a caption, or delete it"),
        ({"metadata.jsonl": "{"}, "metadata.jsonl cannot be read"),
        ({"metadata.jsonl": "[1]"}, "metadata.jsonl cannot be read .not an object in braces"),
        ({"metadata.jsonl": "[" * 100_000}, "metadata.jsonl cannot be read"),
        (
            {"metadata.jsonl": metadata({"file_name": "p0.png", "caption": "x"})},
            "metadata.jsonl, line 1 has file_name, caption; give each caption",
        ),
        (
            {"metadata.jsonl": metadata({"file_name": "p0.png", "text": 7})},
            "line 1: text is 7; write it in quotes",
        ),
        ({"metadata.csv": "file_name,text\np0.png,\n"}, "line 2: text is empty"),
        ({"metadata.csv": "name\np0.png\n"}, "line 2 has name; give each caption"),
    ],
)
def test_captions_that_cannot_be_read_are_told(folder, files, words):
    write(folder, files)
    with pytest.raises(UserError, match=words):
        captions(folder)


def test_captions_that_are_no_utf8_are_told(folder):
    (folder / "p0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"p0.txt cannot be read as UTF-8 text; save it again"):
        captions(folder)


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("my {} at noon", "my x at noon"),
        ("my x at noon", "my x at noon"),
        ("at noon", "x, at noon"),
        ("a x-ray at noon", "x, a x-ray at noon"),
        ("my [name] at noon", "my x at noon"),
        ("my [trigger] at noon", "my x at noon"),
        ("a [name] [filewords]", "a x on a dark beach"),
        ("007", "x, 007"),
    ],
)
def test_marks_in_captions(tmp_path, caption, prompt):
    path = tmp_path / "on_a_dark_beach.jpg"
    on = concepts(tmp_path, use_caption_files=True, append_file_name_to_text=True)
    assert prompts_for(path, "x", "object", on, caption) == [prompt]
    with_hyphens = tmp_path / "on-a-dark-beach.jpg"
    on = dataclasses.replace(on, file_name_split_char="-")
    assert prompts_for(with_hyphens, "x", "object", on, caption) == [prompt]


def test_a_picture_without_a_caption_is_shown_under_templates(tmp_path):
    on = concepts(tmp_path, use_caption_files=True)
    assert len(prompts_for(tmp_path / "a.jpg", "x", "object", on)) == 27


def test_no_caption_at_all_is_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (8, 8), RED).save(other / "q.png")
    folders = [ImageFolder.scan(folder), ImageFolder.scan(other)]
    problem = caption_problem(folders)
    assert f"no picture in {folder} has a caption; write p0.txt for p0.png" in problem
    write(other, {"q.txt": "at noon"})
    assert caption_problem([ImageFolder.scan(folder), ImageFolder.scan(other)]) is None


@pytest.mark.parametrize(
    "stem",
    [
        "IMG_20230114_152900", "IMG_0001", "IMG_E1234", "_MG_1234", "DSC01234", "DSCN0001",
        "P1010001", "PXL_20230114_152900123", "MVIMG_20190101_120000", "20230114_152900",
        "DJI_0042", "GOPR0001", "IMG_20230114_152900~2", "DSC_0042_edited", "2023-01-14 15.29.00",
        "WhatsApp Image 2023-01-14 at 15.29.00", "IMG-20230114-WA0003", "FB_IMG_1673708400000",
        "received_123456789012", "Screenshot 2023-01-14 152900", "signal-2023-01-14-152900",
        "photo_2023-01-14_15-29-00", "d41d8cd98f00b204e9800998ecf8427e", "0001", "7", "image (1)",
        "123e4567-e89b-12d3-a456-426614174000", "picture_1", "untitled",
    ],
)  # fmt: skip
def test_names_of_cameras_hashes_and_dates_say_nothing(tmp_path, stem):
    assert file_words(stem, "_") == ""
    on = concepts(tmp_path, append_file_name_to_text=True)
    prompts = prompts_for(tmp_path / f"{stem}.png", "x", "object", on)
    assert prompts == prompts_for(tmp_path / f"{stem}.png", "x", "object", concepts(tmp_path))


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("on_a_dark_beach", "on a dark beach"),
        ("on_a_table_7", "on a table 7"),
        ("table_2023", "table 2023"),
        ("at_night", "at night"),
        ("portrait_of_a_cat", "portrait of a cat"),
        ("a_facade", "a facade"),
        ("на_пляже", "на пляже"),
        ("on_a_beach_20230114", "on a beach"),
        ("on_a_beach_IMG_0001", "on a beach"),
        ("cat_d41d8cd98f00b204", "cat"),
        ("2023-01-14_on_a_beach", "on a beach"),
    ],
)
def test_names_that_say_something_lose_numbers_of_cameras_alone(stem, words):
    assert file_words(stem, "_") == words


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_what_is_odd_about_a_folder_is_said_in_a_line_each(model, folder, caplog):
    """Before training, it reports captions, frames, sizes, crops, names and copies."""
    frames = [Image.new("RGB", (40, 40), c) for c in (RED, (0, 0, 0))]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (20, 30), (1, 2, 3)).save(folder / "IMG_0001.png")
    Image.new("RGB", (100, 40), (4, 5, 6)).save(folder / "wide.png")
    Image.new("RGB", (120, 40), (7, 5, 6)).save(folder / "wider.png")
    (folder / "copy_of_p1.png").write_bytes((folder / "p1.png").read_bytes())
    write(folder, {"p0.txt": "at noon", "p2.txt": "at night"})
    caplog.set_level(logging.INFO)
    TrainingData(
        concepts(folder, use_caption_files=True, append_file_name_to_text=True), model, 1, 2
    )
    assert messages(caplog) == [
        f"{folder}: only 7 of 8 pictures are different (p1.png is a copy of copy_of_p1.png); "
        "copies are used for training or for validation, but not for both",
        f"{folder}: captions for 2 of 8 pictures",
        f"{folder}: 1 of 8 pictures has several frames or pages, of which only the first is used "
        "(a.gif)",
        f"{folder}: 1 of 8 pictures is smaller than the 32 x 32 to train on and is enlarged "
        "(IMG_0001.png is 20 x 30)",
        f"{folder}: 2 of 8 pictures lose more than half in the crop; set concepts.img_aspect to "
        "buckets or to the shape of most, or concepts.center_crop to false (wide.png keeps 40%)",
        f"{folder}: 2 of 8 pictures are named after a camera, a date or a hash, which is not "
        "appended to the prompt; rename such files, or set concepts.append_file_name_to_text to "
        "false (IMG_0001.png)",
    ]
    caplog.clear()
    TrainingData(concepts(folder, center_crop=False), model, 1, 2)
    assert not any("crop" in text for text in messages(caplog))


def test_a_folder_of_one_picture_and_its_copy(model, tmp_path, caplog):
    Image.new("RGB", (20, 30), (1, 2, 3)).save(tmp_path / "a.png")
    config = concepts(tmp_path, use_caption_files=True)
    caplog.set_level(logging.INFO)
    TrainingData(config, model, 1, 2)
    assert messages(caplog) == [
        f"{tmp_path}: captions for 0 of 1 picture",
        f"{tmp_path}: 1 of 1 picture is smaller than the 32 x 32 to train on and is enlarged "
        "(a.png is 20 x 30)",
    ]
    caplog.clear()
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    TrainingData(config, model, 1, 2)
    assert messages(caplog)[0] == (
        f"{tmp_path}: the 2 pictures are identical (b.png is a copy of a.png); copies are used for "
        "training or for validation, but not for both"
    )


def test_nothing_is_said_of_an_ordinary_folder(model, photos, caplog):
    caplog.set_level(logging.INFO)
    TrainingData(concepts(photos, append_file_name_to_text=True), model, 1, 2)
    assert messages(caplog) == []


def test_copies_stay_on_one_side(model, tmp_path):
    """Six pictures with copies count as six: none is held out. Of twelve, one is, with its copy."""
    rng = torch.Generator().manual_seed(0)
    for k in range(12):
        pixels = torch.randint(0, 256, (40, 48, 3), generator=rng, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"a{k}.png")
        if k < 6:
            (tmp_path / "six").mkdir(exist_ok=True)
            for copy in "ab":
                Image.fromarray(pixels.numpy()).save(tmp_path / "six" / f"{copy}{k}.png")
        (tmp_path / f"b{k}.png").write_bytes((tmp_path / f"a{k}.png").read_bytes())
    six = TrainingData(concepts(tmp_path / "six"), model, 1, 8)
    assert not six.held_out
    assert len(six.images) == 12
    twelve = TrainingData(concepts(tmp_path), model, 1, 8)
    assert twelve.held_out
    assert len(twelve.images) == 22
    assert len(twelve.validation) == 1
    assert twelve.validation[0].pixels not in {image.pixels for image in twelve.images}


def test_files_that_are_no_pictures_are_passed_over_in_a_line(tmp_path, caplog):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg")
    for name in ("._a.jpg", "._b.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    write(tmp_path, {"c.png": pointer, "d.png": pointer, "e.png": pointer})
    os.symlink(tmp_path / "gone.jpg", tmp_path / "f.jpg")
    caplog.set_level(logging.WARNING)
    assert len(list(read_images(tmp_path, concepts(tmp_path), 32, "key"))) == 1
    assert messages(caplog) == [
        f"{tmp_path}: skipping 2 that macOS left beside the pictures (._a.jpg), 1 that are broken "
        "links (f.jpg), 3 that are Git LFS pointers (c.png); run git lfs pull to get the pictures"
    ]
    (tmp_path / "a.jpg").unlink()
    assert "no readable image" in folder_problem(str(tmp_path))
    assert "git lfs pull" in folder_problem(str(tmp_path))


def test_an_empty_folder_may_have_been_a_link(tmp_path):
    problem = folder_problem(str(tmp_path))
    assert "it is empty, as a linked folder is on a cluster" in problem


def test_a_linked_folder_is_told_before_it_is_submitted(model, folder, tmp_path_factory, caplog):
    link = tmp_path_factory.mktemp("link") / "pictures"
    os.symlink(folder, link)
    TrainingData(concepts(link), model, 1, 2)
    assert f"{link} is a link, which is an empty folder to a task" in caplog.text
