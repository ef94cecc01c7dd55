"""Every kind of picture is read as docs/pictures.md says; memory has a ceiling."""

import ast
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from picture_files import (
    BLUE,
    DISPLAY_P3,
    KINDS,
    LOWER_LEFT,
    RED,
    UPPER_RIGHT,
    exif,
    grey_profile,
    halves,
    psd,
    table,
)
from PIL import Image, ImageCms, PngImagePlugin

from detsd.utils import colors, formats, pictures, tiff
from detsd.utils.colors import profile_of, to_srgb
from detsd.utils.formats import open_picture
from detsd.utils.pictures import Budget, read_picture


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_a_kind_of_picture_is_trained_on_as_the_table_says(tmp_path, kind):
    path = tmp_path / kind.file
    kind.write(path)
    picture = read_picture(path)
    assert picture.rgb.mode == "RGB"
    assert picture.size == picture.rgb.size == (8, 8)
    for place, color in ((LOWER_LEFT, kind.lower_left), (UPPER_RIGHT, kind.upper_right)):
        found = np.array(picture.rgb.getpixel(place))
        assert abs(found - color).max() <= kind.tolerance, (place, found, color)
    masked = picture.alpha and tuple(map(picture.alpha.getpixel, (LOWER_LEFT, UPPER_RIGHT)))
    assert masked == kind.opaque


def deflated_tiff(planes: list[bytes], bits: int, sample_format: int) -> bytes:
    """Return a big-endian TIFF file of grey values, with a compressed strip for each channel."""
    strips, count = [zlib.compress(plane) for plane in planes], len(planes)
    at = [8 + len(b"".join(strips[:n])) for n in range(count + 1)]
    tags = {256: 8, 257: 8, 258: bits, 259: 8, 262: 1, 273: at[:-1], 277: count, 278: 8}
    tags |= {279: [len(strip) for strip in strips], 284: count, 338: 2, 339: sample_format}
    entries, body = b"", b"".join(strips)
    for tag, value in tags.items():
        values = value if isinstance(value, list) else [value] * (count if tag == 258 else 1)
        packed = struct.pack(f">{len(values)}I", *values)
        if len(values) > 1:
            packed, body = struct.pack(">I", 8 + len(body)), body + packed
        if tag != 338 or count > 1:
            entries += struct.pack(">HHI", tag, 4, len(values)) + packed
    head = struct.pack(">2sHI", b"MM", 42, 8 + len(body))
    return head + body + struct.pack(">H", len(entries) // 12) + entries + bytes(4)


def test_compressed_tiff_files_that_pillow_reads_wrongly(tmp_path):
    """Floats whose bytes it swaps twice, and transparency on its own, which it takes for none."""
    grey = struct.pack(">8f", *[77 / 255] * 4, *[1.0] * 4) * 8
    (tmp_path / "floats.tiff").write_bytes(deflated_tiff([grey], 32, 3))
    found = np.asarray(read_picture(tmp_path / "floats.tiff").rgb)
    assert (found[:, :4] == 77).all()
    assert (found[:, 4:] == 255).all()
    (tmp_path / "planes.tiff").write_bytes(deflated_tiff([bytes([77] * 64), b"\xff" * 64], 8, 1))
    assert Image.open(tmp_path / "planes.tiff").mode == "LA"
    with pytest.raises(ValueError, match="channels of LA, each stored on its own, cannot be read"):
        read_picture(tmp_path / "planes.tiff")


def test_tiles_of_tiff_files_are_plain_tuples_in_pillow_10(tmp_path):
    kind = next(kind for kind in KINDS if kind.title.startswith("TIFF, RGB, 16 bits"))
    kind.write(tmp_path / "a.tiff")
    with Image.open(tmp_path / "a.tiff") as image:
        image.tile = [tuple(tile) for tile in image.tile]
        tiff.mend_tiles(image)
        assert {type(tile) for tile in image.tile} == {tuple}
        assert [tile[3][0] for tile in image.tile] == ["R;16L", "G;16L", "B;16L"]


def test_the_document_has_the_table():
    assert table() in (ROOT / "docs" / "pictures.md").read_text()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK", "RGBA"])
def test_plain_pictures_keep_pillows_pixels(tmp_path, mode):
    """Old runs' digests stay valid: without a profile, pixels are as Pillow converts them."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).convert("RGB")
    image = pixels.quantize(200) if mode == "P" else pixels.convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    assert read_picture(path).rgb.tobytes() == image.convert("RGB").tobytes()


def test_several_frames_are_known(tmp_path):
    frames = [halves(RED, BLUE), halves(BLUE, RED)]
    for name, several in (("a.gif", True), ("a.tiff", True), ("a.webp", True), ("b.gif", False)):
        rest = frames[1:] if several else []
        frames[0].save(tmp_path / name, save_all=True, append_images=rest)
        assert read_picture(tmp_path / name).several is several, name
    psd(3, RED, BLUE)(tmp_path / "a.psd")
    assert not read_picture(tmp_path / "a.psd").several


@pytest.mark.parametrize(("turns_itself", "found"), [(False, BLUE), (True, RED)])
def test_heic_is_turned_by_exif_where_nothing_else_has_turned_it(
    tmp_path, monkeypatch, turns_itself, found
):
    """Its reader clears EXIF's orientation and keeps it as `original_orientation`.

    pillow-heif 1.8.1 does so whether or not the file has an `irot` property, with which it has
    already turned the picture. This stand-in reads a PNG file with that behaviour.
    """

    class Heif(PngImagePlugin.PngImageFile):
        format = "HEIF"

        def _open(self):
            super()._open()
            self.info.pop("exif", None)
            self.info["original_orientation"] = 6

    for name in ("OPEN", "EXTENSION", "ID"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    Image.register_open("HEIF", Heif, lambda prefix: prefix.startswith(b"\x89PNG"))
    monkeypatch.setattr(formats, "FORMATS", ("HEIF",))
    path = tmp_path / "a.heic"
    halves(RED, BLUE).save(path, "PNG", exif=exif(6))
    box = b"\0\0\0\x11irot\0\0\0\0\x03" if turns_itself else b"\0\0\0\x10pixi\0\0\0\0"
    properties = struct.pack(">I", 8 + len(box)) + b"ipco" + box
    path.write_bytes(path.read_bytes() + properties)
    assert read_picture(path).rgb.getpixel(LOWER_LEFT) == found


@pytest.mark.parametrize(
    ("primaries", "transfer", "color"),
    [(12, 13, (255, 0, 0)), (12, 16, (234, 51, 35)), (1, 13, (234, 51, 35))],
)
def test_heic_without_a_profile_is_converted_by_its_primaries(tmp_path, primaries, transfer, color):
    """They are as pillow-heif 1.8.1 gives them; HDR ones are ignored."""
    names = [f"color_primary_{c}_{a}" for c in ("white", "red", "green", "blue") for a in "xy"]
    nclx = dict(zip(names, DISPLAY_P3, strict=True))
    image = halves((234, 51, 35), BLUE)
    image.info["nclx_profile"] = nclx | {
        "color_primaries": primaries,
        "transfer_characteristics": transfer,
    }
    assert to_srgb(image, profile_of(image)).getpixel(LOWER_LEFT) == color


def test_masks_are_numbers_whatever_profile_they_have(tmp_path):
    path = tmp_path / "a.png"
    halves(64, 255, "L").save(path, icc_profile=grey_profile())
    assert read_picture(path).rgb.getpixel(LOWER_LEFT) == (137,) * 3
    assert read_picture(path, convert=False).rgb.getpixel(LOWER_LEFT) == (64,) * 3


def test_profiles_are_converted_by_the_pillow_of_the_default_image(tmp_path, monkeypatch):
    """A cluster's default image has 10.2, without `ImageCms.Flags`."""
    monkeypatch.delattr(ImageCms, "Flags", raising=False)
    colors._transform.cache_clear()
    halves(64, 255, "L").save(tmp_path / "a.png", icc_profile=grey_profile())
    assert read_picture(tmp_path / "a.png").rgb.getpixel(LOWER_LEFT) == (137,) * 3


def test_damaged_exif_data_cost_no_picture(tmp_path):
    halves(RED, BLUE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(tmp_path / "a.png").rgb.getpixel(LOWER_LEFT) == RED


def test_what_is_no_picture_of_a_known_format_is_not_opened(tmp_path):
    """Pillow would pass PostScript to another program."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(Image.UnidentifiedImageError):
        open_picture(path)
    assert not {".eps", ".ps", ".wmf", ".fits", ".hdf5", ".pdf"} & formats.extensions()


def test_every_opening_of_a_picture_names_its_formats():
    wrong, right = [], 0
    for path in (ROOT / "detsd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                named = "formats" in {keyword.arg for keyword in node.keywords}
                right += named
                wrong += [] if named else [f"{path.name}:{node.lineno}"]
    assert not wrong
    assert right


def test_beyond_pillows_limit_the_remedy_is_said(tmp_path, monkeypatch):
    halves(RED, BLUE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(ValueError, match="more than 62 pixels; scale it down"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.png", {}),
        ("a.jp2", {"irreversible": False}),
        ("a.tiff", {}),
    ],
)
def test_a_large_picture_is_decoded_smaller_to_nearly_the_same(
    tmp_path, monkeypatch, name, options
):
    """Scaled to the size needed, it differs from a full decoding by a level or two on average."""
    x, y = np.meshgrid(np.arange(400), np.arange(320))
    waves = 128 + 100 * np.sin(x / 31) * np.cos(y / 23)
    image = Image.fromarray(np.stack([waves, x / 2, y / 2], -1).astype(np.uint8))
    image.save(tmp_path / name, exif=exif(6), **options)
    if name.endswith("jp2"):  # Pillow reads no EXIF data from it
        image = image.transpose(Image.Transpose.ROTATE_270)
        image.save(tmp_path / name, **options)
    whole = read_picture(tmp_path / name, needed=(32, 40))
    for limit in ("WHOLE", "WHOLE_COSTLY"):
        monkeypatch.setattr(pictures, limit, 1000)
    small = read_picture(tmp_path / name, needed=(32, 40))
    assert small.size == whole.size == (320, 400)
    assert whole.rgb.size == (320, 400)
    assert 64 <= small.rgb.width < 320
    a, b = (
        np.asarray(p.rgb.resize((32, 40), Image.Resampling.LANCZOS), int) for p in (whole, small)
    )
    assert abs(a - b).mean() < 2
    assert abs(a - b).max() <= 12


def test_a_large_transparent_picture_is_scaled_in_strips(tmp_path, monkeypatch):
    image = halves((*RED, 255), (0, 0, 0, 0), "RGBA").resize((800, 800), Image.Resampling.NEAREST)
    image.save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "WHOLE", 1000)
    monkeypatch.setattr(pictures, "STRIP", 10_000)
    small = read_picture(tmp_path / "a.png", needed=(40, 40))
    assert small.rgb.size == small.alpha.size == (80, 80)
    for place, color, opaque in (((10, 70), RED, 255), ((70, 10), (255, 255, 255), 0)):
        assert small.rgb.getpixel(place) == color
        assert small.alpha.getpixel(place) == opaque


def test_what_decodes_as_a_whole_has_a_limit_of_its_own(tmp_path, monkeypatch):
    halves(RED, BLUE).save(tmp_path / "a.webp")
    monkeypatch.setattr(pictures, "MOST", 1000)
    with pytest.raises(ValueError, match="64 pixels, but at most 62 of such a WEBP file fit"):
        read_picture(tmp_path / "a.webp")
    halves(RED, BLUE).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").size == (8, 8)


def test_threads_take_turns_where_memory_is_short():
    """As many run at once as the budget holds; a picture above the budget runs alone."""
    budget, held, most = Budget(10), [], []
    lock, go = threading.Lock(), threading.Barrier(6)

    def work(cost: float) -> None:
        go.wait()
        with budget.hold(cost):
            with lock:
                held.append(cost)
                most.append(sum(held))
            with lock:
                held.remove(cost)

    threads = [threading.Thread(target=work, args=(cost,)) for cost in (4, 4, 4, 10, 10, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 6
    assert max(most) <= 10
    assert budget.taken == 0


def png_of_zeros(path: Path, side: int, depth: int, color: int, channels: int) -> None:
    """Write a large PNG file, row by row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    packer = zlib.compressobj(1)
    row = bytes(1 + side * channels * depth // 8)
    data = b"".join([packer.compress(row) for _ in range(side)] + [packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


MEASURE = """
import resource, sys
import torch
from pathlib import Path
from detsd.config import ConceptsConfig
from detsd.data.images import read_images

folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = ConceptsConfig(["x"], ["y"], [str(folder)])
names = [found.path.name for found in read_images(folder, config, 512, "img_dirs")]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(names), (after - before) * 1024)
"""


@pytest.mark.slow
def test_eight_pictures_of_144_million_pixels_take_less_than_1_gb(tmp_path):
    side = 12_000
    png_of_zeros(tmp_path / "grey0.png", side, 16, 0, 1)
    png_of_zeros(tmp_path / "rgb0.png", side, 16, 2, 3)
    for name in ("grey1.png", "grey2.png"):
        shutil.copy(tmp_path / "grey0.png", tmp_path / name)
    for name in ("rgb1.png", "rgb2.png"):
        shutil.copy(tmp_path / "rgb0.png", tmp_path / name)
    Image.new("L", (side, side), 99).save(tmp_path / "whole.jpg")
    halves(RED, BLUE).save(tmp_path / "tiny.jpg")  # a few hundred bytes that declare as much
    data = (tmp_path / "tiny.jpg").read_bytes()
    declared, huge = (b"\x08" + struct.pack(">HH", n, n) for n in (8, side))
    assert data.count(declared) == 1
    (tmp_path / "tiny.jpg").write_bytes(data.replace(declared, huge))
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, above = map(int, out.stdout.split())
    assert count == 8
    assert above < 1e9
