"""Prompts of any length, with weights: the grammar, the chunks, the states, the pixels."""

import dataclasses
import logging
import re
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import save_tiny_sdxl

from detsd.__main__ import main
from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import UNSUPPORTED, PromptRewriter, unsupported_syntax
from detsd.concepts.weights import parse, split
from detsd.sampling.jobs import Job
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import SCHEDULERS, steps_warning
from detsd.sampling.warnings import JobWarnings
from detsd.utils import png

WORDS = PromptRewriter(
    {"det-logo-demo": "<d|0> <d|1>", "det-logo": "<l|2>", "(a:1.3)": "<a|3>", "<cat>": "<c|4>"}
)
JOB = Job("a blob-thing", 7, "red", 4.0, 3, "ddim", 32, 32)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipe(request, tiny_model, tmp_path_factory):
    folder = tiny_model
    if request.param == "sdxl":
        folder = save_tiny_sdxl(tmp_path_factory.mktemp("xl"))
    made = DetSDTextualInversionPipeline.from_pretrained(str(folder))
    rows = [torch.linspace(-1, 1, 3 * width).view(3, width) for width in made.vocabulary.widths]
    made.vocabulary.add(LearnedConcept("blob-thing", "red ball", tuple(rows)))
    return made


def pixels(pipe, **changes):
    return np.asarray(pipe.make([dataclasses.replace(JOB, **changes)])[0].image, int)


# ---- the grammar ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a (red:1.3) ball", [("a ", 1), ("red", 1.3), (" ball", 1)]),
        ("(red)", [("red", 1.1)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("[[red]] (([x]))", [("red", 1 / 1.21), (" ", 1), ("x", 1.1)]),
        ("((red:1.3) ball:2)", [("red", 2.6), (" ball", 2)]),
        ("(red:-0.5)(blue:0)", [("red", -0.5), ("blue", 0)]),
        ("(red: +.5 )", [("red", 0.5)]),
        ("(red)1.3 ball", [("red", 1.3), (" ball", 1)]),
        (r"saber \(fate\) \[x\] a\\b c\d", [(r"saber (fate) [x] a\b c\d", 1)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        ("(red", [("(red", 1)]),
        ("red) [ball :-( :3)", [("red) [ball :-( :3)", 1)]),
        ("((red) ball", [("(", 1), ("red", 1.1), (" ball", 1)]),
        ("a (16:9) photo (at 10:30)", [("a (16:9) photo (at 10:30)", 1)]),
        ("(score_9:1.2) (x:2)(🐱:1.5)", [("score_9", 1.2), (" ", 1), ("x", 2), ("🐱", 1.5)]),
        ("(red:15) (:1.3)", [("red", 10), (" (:1.3)", 1)]),
        ("(red:x) (red:1.2.3)", [("red:x", 1.1), (" ", 1), ("red:1.2.3", 1.1)]),
        ("(det-logo:1.2) det-logo-demo", [("<l|2>", 1.2), (" <d|0> <d|1>", 1)]),
        ("det-logo-demo(glowing:1.2)", [("<d|0> <d|1>", 1), ("glowing", 1.2)]),
        ("(embedding:det-logo-demo:1.2)", [("<d|0> <d|1>", 1.2)]),
        ("embedding:det-logo.pt, <embed:det-logo> <det-logo>", [("<l|2>, <l|2> <l|2>", 1)]),
        ("a (a:1.3) and ((a:1.3):2)", [("a <a|3> and ", 1), ("<a|3>", 2)]),
        ("a <cat> <lora:x:0.8>", [("a <c|4> ", 1)]),
        ("(" * 400 + "red" + ")" * 400, [("red", 10)]),
    ],
)
def test_a_prompt_is_weighted_as_it_is_written(prompt, pieces):
    (found,) = parse(prompt, WORDS)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    "caption",
    ["blob-thing(glowing:1.2)", "a (red:1.2)blob-thing", "(blob-thing:1.2)", "(blob-thing)1.2"],
)
def test_brackets_that_touch_a_word_in_a_caption_do_not_lose_it(pipe, caption):
    tokens = pipe.vocabulary.rewrite.replacements["blob-thing"]
    text = pipe.vocabulary.text(caption)
    assert tokens in text
    assert "1.2" not in text
    first = pipe.vocabulary.text_encoders[0].embedding.first_id
    assert [i - first for i in pipe.vocabulary.token_ids([caption])[0].tolist() if i >= first] == [
        *range(3)
    ]


def test_break_begins_a_section_and_ends_no_bracket():
    assert parse("a BREAK b", WORDS) == [[("a ", 1)], [(" b", 1)]]
    assert parse("(a BREAK b:2) BREAKS", WORDS) == [[("a ", 2)], [(" b", 2), (" BREAKS", 1)]]
    assert parse("break", WORDS) == [[("break", 1)]]


@pytest.mark.parametrize(
    "prompt",
    ["(" * 30_000 + "x" + ")" * 30_000, "(" * 30_000, "[x" * 30_000, "(x" * 9_000 + ":1.1)" * 9_000,
     "<a:" * 20_000, "{" * 20_000 + "|" * 20_000, "w+" * 20_000, "_" * 30_000, "[:" * 20_000,
     "a" * 60_000, "--a " * 9_000],
)  # fmt: skip
def test_long_prompts_are_read_in_linear_time(prompt):
    """A prompt ten times as long takes about ten times as long, far from the limit here."""
    began = time.process_time()
    parse(prompt, WORDS)
    unsupported_syntax(prompt, ["det-logo"])
    assert time.process_time() - began < 20


# ---- chunks --------------------------------------------------------------------------------------


def chunked(ids, room=75, lengths=None):
    return [[i for i, _ in c] for c in split([[(i, 1.0) for i in ids]], room, lengths or {}, 0)]


def test_tokens_fill_one_chunk_after_the_other():
    ids = list(range(1, 161))
    assert chunked(ids) == [ids[:75], ids[75:150], ids[150:]]
    assert chunked([]) == [[]]


def test_a_phrase_after_a_comma_moves_whole_into_the_next_chunk():
    """A1111's rule: if the comma is one of the last 20 tokens. 0 is the comma."""
    ids = list(range(1, 101))
    ids[59] = 0
    assert chunked(ids) == [ids[:60], ids[60:]]
    ids[59], ids[55] = 60, 0
    assert chunked(ids) == [ids[:56], ids[56:]]  # 19 tokens follow it
    ids[55], ids[54] = 56, 0
    assert chunked(ids) == [ids[:75], ids[75:]]  # 20
    ids[54], ids[75] = 55, 0  # itself after the end
    assert chunked(ids) == [ids[:75], ids[75:]]


def test_the_vectors_of_a_word_stay_together():
    """500 has four vectors, 500 to 503."""
    word = [500, 501, 502, 503]
    ids = [*range(1, 74), *word, 99]
    assert chunked(ids, lengths={500: 4}) == [ids[:73], [*word, 99]]
    assert chunked(ids[2:], lengths={500: 4}) == [ids[2:77], [99]]  # they just fit
    many = list(range(500, 600))  # more than fit
    assert chunked(many, lengths={500: 100}) == [many[:75], many[75:]]


def test_chunks_are_padded_as_the_tokenizer_pads(pipe):
    for prompt in ("", "a red ball", "a blob-thing, close-up"):
        for side, (ids, weights) in zip(
            pipe.vocabulary.text_encoders, pipe.vocabulary.chunks(prompt), strict=True
        ):
            assert torch.equal(ids, side.ids([pipe.vocabulary.text(prompt)]))
            assert (weights == 1).all()
    ids, weights = pipe.vocabulary.chunks("(red:2) BREAK a (blob-thing:0.5)")[-1]
    assert weights[:, :7].tolist() == [[1, 2, 1, 1, 1, 1, 1], [1, 1, 0.5, 0.5, 0.5, 1, 1]]
    assert ids.shape == (2, 77)


# ---- states --------------------------------------------------------------------------------------


def test_a_weight_moves_a_word_away_from_the_empty_prompt(pipe):
    """z -> e + w (z - e) at the word's tokens, the others as they were."""
    model = pipe.model
    plain = model.encode_prompts(["a red ball"])
    none = model.encode_prompts([""]).prompt_embeds[0]
    for weight in (1.3, 0.5, 0.0, -0.5):
        cond = model.encode_weighted_prompt(f"a (red:{weight}) ball")
        z, got = plain.prompt_embeds[0], cond.prompt_embeds[0]
        assert torch.allclose(got[2], none[2] + weight * (z[2] - none[2]), atol=1e-6)
        others = [k for k in range(77) if k != 2]
        assert torch.equal(got[others], z[others])
        if plain.added_cond_kwargs:  # pooled states have no weights
            pooled = "text_embeds"
            assert torch.equal(cond.added_cond_kwargs[pooled], plain.added_cond_kwargs[pooled])


def test_weights_of_one_change_no_bit(pipe):
    model = pipe.model
    for weighted, plain in (
        ("a (red:1.0) ball", "a red ball"),
        ("a (blob-thing:1) on [(wood)]", "a blob-thing on wood"),
        ("embedding:blob-thing", "blob-thing"),
        (r"a \[red\] ball", "a [red] ball"),
    ):
        a, b = model.encode_weighted_prompt(weighted), model.encode_prompts([plain])
        assert torch.equal(a.prompt_embeds, b.prompt_embeds)


def test_a_long_prompt_is_its_chunks_one_behind_the_other(pipe):
    model, first, second = pipe.model, "very " * 75, "a blob-thing"
    assert pipe.vocabulary.chunk_count(first) == 1
    assert pipe.vocabulary.chunk_count(first + second) == 2
    cond = model.encode_weighted_prompt(first + second)
    both = [model.encode_prompts([part]) for part in (first, second)]
    assert torch.equal(cond.prompt_embeds, torch.cat([b.prompt_embeds for b in both], 1))
    if cond.added_cond_kwargs:
        pooled = [c.added_cond_kwargs["text_embeds"] for c in (cond, both[0])]
        assert torch.equal(*pooled)
    padded = model.encode_weighted_prompt("a red ball", chunks=2).prompt_embeds
    parts = [model.encode_prompts([text]).prompt_embeds for text in ("a red ball", "")]
    assert torch.equal(padded, torch.cat(parts, 1))


# ---- pixels --------------------------------------------------------------------------------------


def test_images_follow_weights_in_both_prompts(pipe):
    plain = pixels(pipe)
    assert (pixels(pipe, prompt="a (blob-thing:1.0)") == plain).all()
    assert (pixels(pipe, prompt="a (blob-thing:1.4)") != plain).any()
    assert (pixels(pipe, negative_prompt="(red:1.8)") != plain).any()
    assert (pixels(pipe, prompt="a blob-thing <lora:x:0.8>") == plain).all()
    assert (pixels(pipe, prompt="a blob-thing BREAK") == plain).all()
    without = pixels(pipe, prompt="a (blob-thing:1.4)", prompt_weights=False)
    assert (without == plain).all()  # as in versions without weights


@pytest.mark.parametrize("change", [{"guidance_interval": (0.3, 0.7)}, {"guidance_scale": 1.0}, {}])
def test_an_image_is_the_same_whatever_is_made_at_once(pipe, change):
    """Prompts of different lengths must not change each other, whichever is longer."""
    prompts = (
        "a blob-thing",
        "very " * 90 + "blob-thing",
        "a (blob-thing:1.3)",
        "a BREAK b BREAK c",
    )
    jobs = [dataclasses.replace(JOB, prompt=p, **change) for p in prompts]
    jobs.append(dataclasses.replace(JOB, negative_prompt="red " * 80, **change))
    together = pipe.make(jobs, pad_batch_to=5)
    for job, made in zip(jobs, together, strict=True):
        (alone,) = pipe.make([job], pad_batch_to=5)
        assert alone.image.tobytes() == made.image.tobytes()


def test_a_call_takes_weights_and_long_prompts(pipe, caplog):
    caplog.set_level(logging.WARNING)

    def call(prompt, **options):
        options = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"} | options
        noise = torch.Generator().manual_seed(3)
        return pipe(prompt, generator=noise, height=32, width=32, **options).images

    plain = call("a blob-thing")
    assert torch.equal(call("a (blob-thing:1.0)"), plain)
    assert not torch.equal(call("a (blob-thing:1.5)"), plain)
    assert not torch.equal(call("a blob-thing", negative_prompt="(red:1.5)"), plain)
    assert call(["a (red:1.2)", "very " * 90], negative_prompt=["", "blue"]).shape[0] == 2
    assert not caplog.records
    call("a dog AND a cat, [red:blue:0.5]", num_inference_steps=1, negative_prompt="{a|b}")
    call("a cow AND a cat")
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "has AND" in line]) == 1
    assert any("has {a|b}" in line for line in said)
    assert any(line.startswith("num_inference_steps: 1 gives noise with") for line in said)


# ---- grids ---------------------------------------------------------------------------------------

GRID = {"num_inference_steps": 2, "width": 32, "height": 32, "seeds": 0}


def generate(model, folder, prompt, **grid):
    settings = {"grid.prompts": f'["{prompt}"]'} | {
        f"grid.{k}": v for k, v in (GRID | grid).items()
    }
    given = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    path = f"model.pretrained_model_name_or_path={model}"
    return main(["generate", "--set", path, *given, "--output-dir", str(folder)])


def test_a_grid_of_a_version_without_weights_is_not_mixed(
    tiny_model, tmp_path, capsys, monkeypatch
):
    """A file without the setting was drawn without weights; `--from` redraws it so."""
    old = tmp_path / "old"
    assert generate(tiny_model, old, "a (red:1.4) ball", prompt_weights="false") == 0
    (file,) = (old / "images").glob("*.png")
    record = png.read_record(file)
    assert record.pop("prompt_weights") is False
    assert record["prompt"] == "a (red:1.4) ball"
    image = png.read(file)
    file.write_bytes(png.encode(image, record))
    capsys.readouterr()
    assert generate(tiny_model, old, "a (red:1.4) ball") == 2
    assert "(it differs in its prompt_weights)" in capsys.readouterr().err
    assert generate(tiny_model, old, "a (red:1.4) ball", prompt_weights="false") == 0
    assert main(["generate", "--from", str(file), "--output-dir", str(tmp_path / "again")]) == 0
    assert "the same pixels as" in capsys.readouterr().out
    new = tmp_path / "new"
    assert generate(tiny_model, new, "a (red:1.4) ball") == 0
    (file,) = (new / "images").glob("*.png")
    assert png.read_record(file)["prompt_weights"] is True
    assert png.read(file).tobytes() != image.tobytes()
    assert main(["generate", "--from", str(file), "--output-dir", str(tmp_path / "anew")]) == 0
    assert "the same pixels as" in capsys.readouterr().out


def test_a_plain_grid_of_a_version_without_weights_goes_on(tiny_model, tmp_path):
    folder = tmp_path / "plain"
    assert generate(tiny_model, folder, "a red ball") == 0
    (file,) = (folder / "images").glob("*.png")
    record = png.read_record(file)
    assert record.pop("prompt_weights") is None
    file.write_bytes(png.encode(png.read(file), record))
    assert generate(tiny_model, folder, "a red ball") == 0


# ---- the table of syntaxes -----------------------------------------------------------------------


def syntaxes():
    """Return the table's prompts, with detsd's reading of each."""
    table = (ROOT / "docs" / "prompts.md").read_text().split("| prompt | A1111")[1]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]]
    cells = [[cell.strip().replace("\\|", "|") for cell in (row[0], row[-1])] for row in rows]
    return [(prompt.strip("`"), here) for prompt, here in cells]


@pytest.mark.parametrize(("prompt", "here"), syntaxes())
def test_a_syntax_of_the_table_is_read_as_it_says(prompt, here):
    sections = parse(prompt, PromptRewriter({"det-logo": "<concept>"}))
    pieces = [(text.strip(), round(weight, 2)) for section in sections for text, weight in section]
    told = list(unsupported_syntax(prompt, ["det-logo"]).values())
    assert len(sections) == 1 + (here == "two chunks")
    if here.startswith("told, "):
        assert len(told) == 1
        assert f"not support: it is {here.removeprefix('told, ')}" in told[0]
        if here == "told, left out":
            assert "".join(text for text, _ in pieces).split() == ["a", "ball"]
        return
    assert told == []
    if here == "text":
        assert pieces == [(prompt, 1)]
    for text, weight in re.findall(r"`([^`]+)` (-?[\d.]+)", here):
        assert (text, float(weight)) in pieces
    for text in re.findall(r"`([^`]+)` as text", here):
        assert len(pieces) == 1
        assert text in pieces[0][0]
    if here.startswith("the concept"):
        weight = float((re.match(r"the concept ([\d.]+)", here) or [1, 1])[1])
        assert pieces[0] == ("<concept>", weight)


def test_the_table_has_every_syntax_that_is_told():
    found = set()
    for prompt, _ in syntaxes():
        found |= unsupported_syntax(prompt, ["det-logo"]).keys()
    assert found == {meaning for _, meaning, _ in UNSUPPORTED}


@pytest.mark.parametrize(
    "prompt",
    ["a red ball, close-up", "C# and F#", "an 18+ sign", "pre- and post-war", "a cat -- asleep",
     "half-timbered, well-lit", "a: b", "at 10:30, 16:9", "rock & roll", "<3", "a < b > c", "AND1",
     "sand and ANDROID", "my_file_name", "x-ray", "det-logo, det-logo-like", "3::", "(a, b)"],
)  # fmt: skip
def test_usual_texts_are_no_syntax(prompt):
    assert unsupported_syntax(prompt, ["det-logo"]) == {}


def test_a_concept_that_looks_like_a_syntax_is_none():
    for name in ("w++", "__x__", "{a|b}", "<lora:x:1>", "my AND you", "a::2", "--ar 1"):
        assert unsupported_syntax(f"a {name} of", ["det-logo", name]) == {}
        assert parse(f"a {name} of", PromptRewriter({name: "<c>"})) == [[("a <c> of", 1)]]


# ---- what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_so_few_steps_that_noise_is_left_are_told(name, tiny_model):
    model = DetSDTextualInversionPipeline.from_pretrained(str(tiny_model)).model
    noisy = {"ddim", "pndm", "lms-discrete", "euler", "euler-ancestral", "heun"}
    assert bool(steps_warning(model, name, 1)) == (name in noisy)
    assert bool(steps_warning(model, name, 2)) == (name == "heun")
    assert not steps_warning(model, name, 3)
    assert not steps_warning(model, name, 1, "trailing")


def test_guidance_that_covers_no_step_is_told(model):
    """The warning comes once, and only for guided jobs."""
    warn, job = JobWarnings(model), Job("a ball", 0, guidance_scale=7, num_inference_steps=2)
    assert warn([job, dataclasses.replace(job, guidance_interval=(0.2, 0.8))]) == []
    none = dataclasses.replace(job, guidance_interval=(0.2, 0.4))
    (said,) = warn([none, dataclasses.replace(none, seed=1)])
    assert said.startswith("guidance_interval: [0.2, 0.4] contains none of the 2 steps")
    assert JobWarnings(model)([dataclasses.replace(none, guidance_scale=1)]) == []


def test_negative_prompts_without_guidance_are_told(model):
    """Two of them would make the same image twice; each scale is told once."""
    warn, job = JobWarnings(model), Job("a ball", 0, "red", guidance_scale=1)
    said = "at a guidance scale of 1, negative prompts have no effect; use more than 1"
    assert warn([job, dataclasses.replace(job, negative_prompt="blue")]) == [said]
    for other in ({"negative_prompt": ""}, {"guidance_scale": 1.1}):
        assert JobWarnings(model)([dataclasses.replace(job, **other)]) == []
