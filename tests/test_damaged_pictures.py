"""Any files in a folder of pictures give images of one shape, or a sentence."""

import json

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from picture_files import KINDS
from PIL import Image
from test_data import RED, concepts

from detsd.data.captions import file_words, find_captions
from detsd.data.folder import ImageFolder
from detsd.data.images import read_images
from detsd.data.prompts import prompts_for
from detsd.utils.errors import UserError

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=8
)


def damaged(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Replace a few bytes at each place, given as a share of the file's length."""
    for share, length, other in changes:
        at = int(share * len(data))
        data = data[:at] + other + data[at + length :]
    return data


@QUICK
@given(st.sampled_from(KINDS), CHANGES)
def test_a_damaged_picture_is_read_or_named_and_skipped(tmp_path, kind, changes):
    folder = tmp_path / "pictures"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    kind.write(folder / kind.file)
    (folder / kind.file).write_bytes(damaged((folder / kind.file).read_bytes(), changes))
    Image.new("RGB", (8, 8), RED).save(folder / "whole.png")
    found = list(read_images(folder, concepts(folder), 32, "img_dirs"))
    assert found[-1].path.name == "whole.png"
    assert {image.image.size for image in found} == {(32, 32)}
    assert {image.image.mode for image in found} == {"RGB"}


@QUICK
@given(
    st.sampled_from(["metadata.jsonl", "metadata.csv", "a.txt"]),
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.dictionaries(
            st.sampled_from(["file_name", "text", "x"]),
            st.one_of(st.text(max_size=9), st.none(), st.integers(), st.just("a.png")),
        ).map(lambda row: json.dumps(row).encode()),
    ),
)
def test_captions_are_texts_or_a_sentence(tmp_path, name, data):
    for old in tmp_path.iterdir():
        old.unlink()
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(data)
    found = {}
    try:
        found = find_captions(ImageFolder.scan(tmp_path))
    except UserError as error:
        assert str(tmp_path / name) in str(error)  # noqa: PT017 - either is right
    for path, text in found.items():
        assert path == tmp_path / "a.png"
        assert text
        assert text == " ".join(text.split())
        (prompt,) = prompts_for(path, "x", "object", concepts(tmp_path), text)
        assert "x" in prompt


@QUICK
@given(st.text(max_size=40), st.sampled_from(["_", "-", " ", ""]))
def test_words_of_any_file_name_are_its_own(stem, split):
    words = file_words(stem, split)
    assert set(words) <= {*stem, " "}
    assert split.isspace() or not split or split not in words
