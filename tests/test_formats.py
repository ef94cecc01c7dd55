"""Concept files: round trips, and damaged or foreign ones refused with a sentence."""

import pickle

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from detsd.errors import UserError
from detsd.formats import DICT_FILE, LearnedConcept, file_name, read_concepts, write_concepts

CONCEPTS = [
    LearnedConcept("blob-thing", "red ball", torch.randn(2, 16)),
    LearnedConcept("other/thing", "blue cube", torch.randn(3, 16)),
]


def test_dictionary_round_trip(tmp_path):
    write_concepts(CONCEPTS, tmp_path)
    for where in (tmp_path, tmp_path / DICT_FILE):
        for given, read in zip(CONCEPTS, read_concepts(where), strict=True):
            assert (read.name, read.initializer) == (given.name, given.initializer)
            assert torch.equal(read.embeddings, given.embeddings)


def test_dictionary_layout(tmp_path):
    write_concepts(CONCEPTS, tmp_path)
    table = torch.load(tmp_path / DICT_FILE, weights_only=True)
    assert table["blob-thing"]["initializer_strs"] == "red ball"
    assert table["blob-thing"]["learned_embeddings"].shape == (2, 16)
    # A slice saved as a view would drag the whole table along.
    assert table["blob-thing"]["learned_embeddings"].untyped_storage().nbytes() == 2 * 16 * 4


def test_rows_of_two_text_encoders(tmp_path):
    two = LearnedConcept("wide-thing", "red ball", torch.randn(2, 16), torch.randn(2, 24))
    write_concepts([two, CONCEPTS[0]], tmp_path)
    assert set(load_file(tmp_path / "wide-thing.safetensors")) == {"clip_l", "clip_g"}
    for where in (tmp_path, tmp_path / "wide-thing.safetensors"):
        read = read_concepts(where)[0]
        assert (read.name, read.initializer, read.widths) == ("wide-thing", "red ball", (16, 24))
        assert all(map(torch.equal, read.rows, two.rows))


def test_one_file_per_concept_with_its_own_rows_only(tmp_path):
    write_concepts(CONCEPTS, tmp_path)
    assert set(load_file(tmp_path / "blob-thing.safetensors")) == {"blob-thing"}
    (read,) = read_concepts(tmp_path / "other_thing.safetensors")
    assert (read.name, read.initializer) == ("other/thing", "blue cube")
    assert file_name("../x y") == "x_y"


def test_diffusers_reads_our_safetensors(tmp_path, tiny_model):
    write_concepts(CONCEPTS[:1], tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.load_textual_inversion(tmp_path / "blob-thing.safetensors")
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[-2:], CONCEPTS[0].embeddings)


@pytest.mark.parametrize("name", [DICT_FILE, "blob-thing.safetensors"])
def test_truncated_files_are_refused(tmp_path, name):
    write_concepts(CONCEPTS[:1], tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read_concepts(path)


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "trap.pt"
    torch.save({"x": Trap()}, path)
    with pytest.raises(UserError, match="damaged or no concept file"):
        read_concepts(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="damaged or no concept file"):
        read_concepts(path)
    assert not (tmp_path / "ran").exists()


def test_foreign_and_missing_files_are_refused(tmp_path):
    for foreign in ([1, 2], {"cat-toy": torch.ones(2, 768)}, {"string_to_param": {"*": 1}}):
        torch.save(foreign, tmp_path / "foreign.pt")
        with pytest.raises(UserError, match="not laid out"):
            read_concepts(tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="does not exist"):
        read_concepts(tmp_path / "gone.pt")
    write_concepts([LearnedConcept("x", "y", torch.full((1, 4), float("nan")))], tmp_path)
    with pytest.raises(UserError, match="finite"):
        read_concepts(tmp_path)
