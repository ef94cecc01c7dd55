"""Sheets and time-lapses: sizes, labels, frames."""

import numpy as np
import pytest
from PIL import Image

from detsd.utils import contact_sheets, fonts


def tile(value, size=64):
    return Image.new("RGB", (size, size), (value, 40, 40))


def test_sheet_holds_every_image_and_label():
    rows = [[tile(60), tile(120), tile(180)], [tile(220)]]
    sheet = contact_sheets.sheet(rows, ["first row", "second row"], ["a", "b", "c"], title="title")
    pixels = np.asarray(sheet).astype(int)
    for value in (60, 120, 180, 220):
        found = (abs(pixels - (value, 40, 40)).max(-1) <= 2).sum()
        assert found == 192 * 192  # 64 pixels enlarged by 3
    dark = (pixels.max(-1) < 90).sum()
    blank = contact_sheets.sheet(rows, ["", ""])
    assert dark > (np.asarray(blank).max(-1) < 90).sum() + 200


@pytest.mark.parametrize("side", [64, 200, 512])
def test_the_more_images_the_smaller_is_each_on_a_sheet(side):
    """A sheet must stay viewable, and its cost must fit its size."""
    pixels = []
    for count in (1, contact_sheets.MANY, contact_sheets.MANY + 1, 4 * contact_sheets.MANY, 1000):
        shown = contact_sheets.as_tile(tile(60, side), count)
        assert contact_sheets.as_tile(shown, count).size == shown.size
        assert count <= contact_sheets.MANY or shown.width <= side
        pixels.append(shown.width)
        assert count * shown.width * shown.height <= contact_sheets.MANY * contact_sheets.LARGEST**2
    assert pixels == sorted(pixels, reverse=True)


def test_a_notice_stands_where_the_image_would():
    for size in ((64, 64), (64, 32), (512, 512), (768, 512)):
        tile_of = contact_sheets.notice("flagged by the safety checker", size)
        sheet = contact_sheets.sheet([[tile_of, Image.new("RGB", size)]], [""])
        bare = contact_sheets.sheet([[Image.new("RGB", size)] * 2], [""])
        assert sheet.size == bare.size
        assert (np.asarray(tile_of).min(2) > 200).any()  # words


def test_long_labels_are_wrapped_inside_the_sheet():
    sheet = contact_sheets.sheet([[tile(60), tile(90)]], ["word " * 60])
    edge = np.asarray(sheet)[:, -2:]
    assert (edge == 255).all()
    assert sheet.height > 192 + 4 * 18


def test_large_images_keep_their_size():
    assert contact_sheets.enlarge(tile(1, 512)).size == (512, 512)
    assert contact_sheets.enlarge(tile(1, 64)).size == (192, 192)


def test_time_lapse(tmp_path):
    frames = [(step, [tile(step), tile(step + 5)]) for step in range(0, 200, 10)]
    contact_sheets.time_lapse(frames, ["a sample", "another"], tmp_path)
    with Image.open(tmp_path / "time_lapse.gif") as gif:
        assert gif.n_frames == 20
    with Image.open(tmp_path / "time_lapse.png") as strip:
        assert strip.width > 8 * 192  # eight moments
        labelled = strip.height
    contact_sheets.time_lapse(frames, ["", ""], tmp_path)
    with Image.open(tmp_path / "time_lapse.png") as strip:
        assert strip.height < labelled


def test_before_after_pairs_equal_seeds_below_what_was_taught():
    prompts = ["a p", "a p", "a q"]
    picture = contact_sheets.before_after(
        [tile(10), tile(20), tile(30)],
        [tile(110), tile(120), tile(130)],
        prompts,
        ["a phrase", "a phrase", "another"],
        {"p": [tile(200, 48)] * 9, "q": [tile(210)]},
    )
    pixels = np.asarray(picture).astype(int)
    same = [(pixels == (v, 40, 40)).all(-1).sum(1) > 100 for v in (200, 210, 10, 110, 30, 130)]
    tops = [int(np.flatnonzero(rows)[0]) for rows in same]
    assert tops == sorted(tops)
    assert picture.width < 4 * 192  # of nine training images, only as many as fit


def test_every_prompt_of_a_time_lapse_has_a_row_and_a_label(tmp_path, monkeypatch):
    drawn = []
    sheet = contact_sheets.sheet
    monkeypatch.setattr(contact_sheets, "sheet", lambda *a, **k: drawn.append(a) or sheet(*a, **k))
    prompts = ["one"] * 6 + ["two"] * 2 + ["three"]
    frames = [(step, [tile(k) for k in range(9)]) for step in (0, 10)]
    contact_sheets.time_lapse(frames, prompts, tmp_path)
    for rows, labels, *_ in drawn:
        assert labels == ["one", "two", "three"]
        assert len(rows) == 3
    assert [len(row) for row in drawn[0][0]] == [4, 2, 1]
    assert [len(row) for row in drawn[-1][0]] == [2, 2, 2]  # a column for each moment


def ink(text) -> set[bytes]:
    """Return the shapes of a text's characters, drawn in the font for the whole text."""
    font = fonts.font(20, text)
    return {bytes(font.getmask(c)) for c in text if not c.isspace()}


def test_labels_in_many_scripts_have_shapes_of_their_own():
    for text in ("Łódź—“é”", "кирцла", "ΕληνικάΩ", "żßøğ…×"):
        assert len(ink(text)) == len(text)


def test_a_character_that_no_font_has_is_told_once(caplog, monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/no/font.ttf"])
    monkeypatch.setattr(fonts, "_warned", set())
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    contact_sheets.sheet([[tile(1)]], ["漢字"], title="漢")
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    (said,) = [r.getMessage() for r in caplog.records]
    assert "no installed font has 字 漢" in said or "no installed font has 漢 字" in said
    assert "Noto Sans CJK" in said


def test_a_font_of_the_system_is_taken_where_the_usual_one_lacks_something(monkeypatch, caplog):
    import matplotlib
    from matplotlib import font_manager

    other = f"{matplotlib.get_data_path()}/fonts/ttf/LastResortHE-Regular.ttf"  # has all characters
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/no/font.ttf", other])
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    assert fonts.font(14, "漢").path == other
    assert fonts.font(14, "é").path.endswith("DejaVuSans.ttf")
    fonts._file.cache_clear()
    fonts._installed.cache_clear()
    assert not caplog.records


def test_text_without_spaces_is_wrapped():
    path = "/a/very/long/path" * 9
    lines = contact_sheets._wrapped(f"see {path}", 200, 14)
    assert all(fonts.font(14).getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == f"see{path}"
