"""Sheets and time-lapses: sizes, labels, frames."""

import numpy as np
from PIL import Image

from detsd import images


def tile(value, size=64):
    return Image.new("RGB", (size, size), (value, 40, 40))


def test_sheet_holds_every_image_and_label():
    rows = [[tile(60), tile(120), tile(180)], [tile(220)]]
    sheet = images.sheet(rows, ["first row", "second row"], ["a", "b", "c"], title="title")
    pixels = np.asarray(sheet).astype(int)
    for value in (60, 120, 180, 220):
        found = (abs(pixels - (value, 40, 40)).max(-1) <= 2).sum()
        assert found == 192 * 192  # 64 pixels enlarged by 3
    dark = (pixels.max(-1) < 90).sum()
    blank = images.sheet(rows, ["", ""])
    assert dark > (np.asarray(blank).max(-1) < 90).sum() + 200


def test_a_notice_stands_where_the_image_would():
    for size in ((64, 64), (64, 32), (512, 512), (768, 512)):
        tile_of = images.notice("flagged by the safety checker", size)
        sheet = images.sheet([[tile_of, Image.new("RGB", size)]], [""])
        bare = images.sheet([[Image.new("RGB", size)] * 2], [""])
        assert sheet.size == bare.size
        assert (np.asarray(tile_of).min(2) > 200).any()  # words


def test_long_labels_are_wrapped_inside_the_sheet():
    sheet = images.sheet([[tile(60), tile(90)]], ["word " * 60])
    edge = np.asarray(sheet)[:, -2:]
    assert (edge == 255).all()
    assert sheet.height > 192 + 4 * 18


def test_large_images_keep_their_size():
    assert images.enlarge(tile(1, 512)).size == (512, 512)
    assert images.enlarge(tile(1, 64)).size == (192, 192)


def test_time_lapse(tmp_path):
    frames = [(step, [tile(step), tile(step + 5)]) for step in range(0, 200, 10)]
    images.time_lapse(frames, ["a sample", "another"], tmp_path)
    with Image.open(tmp_path / "time_lapse.gif") as gif:
        assert gif.n_frames == 20
    with Image.open(tmp_path / "time_lapse.png") as strip:
        assert strip.width > 8 * 192  # eight moments
        labelled = strip.height
    images.time_lapse(frames, ["", ""], tmp_path)
    with Image.open(tmp_path / "time_lapse.png") as strip:
        assert strip.height < labelled


def test_before_after_pairs_equal_seeds():
    prompts = ["p", "p", "q"]
    picture = images.before_after(
        [tile(10), tile(20), tile(30)], [tile(110), tile(120), tile(130)], prompts, "phrase"
    )
    pixels = np.asarray(picture).astype(int)
    same = [(pixels == (v, 40, 40)).all(-1).sum(1) > 100 for v in (10, 110, 30, 130)]
    tops = [int(np.flatnonzero(rows)[0]) for rows in same]
    assert tops == sorted(tops)
