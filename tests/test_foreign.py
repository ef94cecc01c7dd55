"""Images of A1111 and ComfyUI as the source of `generate --from`: settings and messages."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detsd.__main__ import main
from detsd.config import GenerateConfig, parse_config
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.foreign import read_foreign

A1111 = """a (red:1.3) fish, <lora:add_detail:0.8> sea
second line
Negative prompt: ugly, blurred
bad hands
Steps: 24, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, \
Size: 64x96, Model hash: 6ce0161689, Model: "v1-5, pruned", RNG: CPU, SGM noise multiplier: True, \
Lora hashes: "add_detail: 7c6bad76eb54", Version: v1.10.1"""

KARRAS = {
    "prompts": "a (red:1.3) fish, <lora:add_detail:0.8> sea\nsecond line",
    "negative_prompts": "ugly, blurred\nbad hands",
    "scheduler_names": "dpmsolver++-karras", "num_inference_steps": 24, "guidance_scales": 6.5,
    "seeds": 965400086, "width": 64, "height": 96,
}  # fmt: skip


def with_texts(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def with_comment(path, comment: bytes):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (64, 64)).save(path, exif=exif)
    return path


def a1111(tmp_path, line: str, prompt: str = "a fish"):
    return read_foreign(with_texts(tmp_path / "a.png", parameters=f"{prompt}\n{line}"))


def test_a1111s_text_is_read_line_by_line(tmp_path):
    found = read_foreign(with_texts(tmp_path / "a.png", parameters=A1111))
    assert found.tool == "A1111"
    assert found.grid == KARRAS
    assert found.model == "v1-5, pruned"
    assert found.notes == ["LoRA is not supported; it is left out"]
    assert parse_config({"model": {"pretrained_model_name_or_path": "x"}, "grid": found.grid},
                        "a", GenerateConfig).grid.seeds == [965400086]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("a.jpg", b"UNICODE\0" + A1111.encode("utf-16-be")),
        ("a.webp", b"UNICODE\0" + A1111.encode("utf-16-le")),
        ("b.jpg", b"ASCII\0\0\0" + A1111.encode()),
        ("c.jpg", A1111.encode()),
    ],
)
def test_comments_of_other_formats_are_read(tmp_path, name, comment):
    assert read_foreign(with_comment(tmp_path / name, comment)).grid == KARRAS


START = "Steps: 20, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU, Sampler: "
GPU = "its noise was drawn on a GPU (it does not say RNG: CPU); expect another image"


@pytest.mark.parametrize(
    ("line", "scheduler", "spacing", "notes"),
    [
        ("Euler", "euler", "linspace", []),
        ("Euler a, Schedule type: Automatic", "euler-ancestral", "linspace", []),
        ("Euler, Schedule type: DDIM, SGM noise multiplier: True", "euler", "leading", []),
        ("Heun, Schedule type: Simple", "heun", "trailing", []),
        ("DDIM", "ddim", "leading", []),
        ("DPM++ 2M, Schedule type: SGM Uniform, SGM noise multiplier: True", "dpmsolver++",
         "linspace", []),
        ("DPM++ 2M Karras, SGM noise multiplier: True", "dpmsolver++-karras", None, []),
        ("DPM++ 2M Karras", "dpmsolver++-karras", None,
         ["its noise levels differ slightly from those here (SGM noise multiplier)"]),
        ("DPM2 a Karras", None, None,
         ["its sampler 'DPM2 a Karras' is not supported; ddim is used"]),
        ("Euler, Schedule type: Beta", "euler", "linspace",
         ["its schedule 'Beta' is not supported with euler"]),
        ("UniPC", "unipc", None,
         ["unipc here differs from UniPC there; expect a similar but different image"]),
        ("Euler, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent", "euler",
         "linspace", ["hires fix is not supported; it is left out"]),
        ("Euler, Denoising strength: 0.5", "euler", "linspace",
         ["an initial image is not supported; it is left out"]),
        ("Euler, VAE hash: 1234567890, VAE: other.pt", "euler", "linspace",
         ["its VAE was other.pt; name the file in model.vae"]),
        ('Euler, TI hashes: "easy: 0123456789ab, bad-hands-5: 123456789abc"', "euler", "linspace",
         ["its prompt uses the concepts easy, bad-hands-5; name their files in concepts.files"]),
        ("Euler, My extension: on", "euler", "linspace",
         ["'My extension' is not supported; it is left out"]),
    ],
)  # fmt: skip
def test_samplers_schedules_and_what_is_not_honoured(tmp_path, line, scheduler, spacing, notes):
    found = a1111(tmp_path, START + line)
    assert found.grid.get("scheduler_names") == scheduler
    assert found.grid.get("spacing") == spacing
    assert found.notes == notes


@pytest.mark.parametrize(("text", "count"), [("2", 1), ("1", 0), ("0", 0), ("x", 0), ("9" * 9, 0)])
def test_clip_skip_is_counted_as_diffusers_does(tmp_path, text, count):
    found = a1111(tmp_path, f"{START}Euler, Clip skip: {text}")
    assert found.clip_skip == count
    assert any("model.clip_skip=0" in note for note in found.notes) == bool(count)


def test_noise_of_the_gpu_and_odd_steps_are_named(tmp_path):
    line = "Steps: 23, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 64x64, RNG: NV"
    found = a1111(tmp_path, line, "a [red:blue:0.5] fish AND a cat")
    assert found.grid["prompts"] == "a [red:blue:0.5] fish AND a cat"
    assert found.notes == [
        GPU,
        "with 23 steps the noise levels differ somewhat from A1111's",
    ]


def test_our_own_text_is_read_back(tmp_path):
    """Another program may keep an image's A1111 text and lose the rest."""
    record = {
        "prompt": "a fish", "negative_prompt": "bad", "seed": 5, "guidance_scale": 4.0,
        "num_inference_steps": 20, "width": 64, "height": 64, "spacing": "trailing",
        "guidance_interval": [0.2, 0.8], "concepts": {}, "prompt_weights": False,
        "model": {"pretrained_model_name_or_path": "demo_model"},
    }  # fmt: skip
    for name in png.SAMPLERS:
        text = png.parameters(record | {"scheduler_name": name}, png.noise_fields(name, "trailing"))
        found = read_foreign(with_texts(tmp_path / "a.png", parameters=text))
        expected = {
            "prompts": "a fish", "negative_prompts": "bad", "seeds": 5, "guidance_scales": 4.0,
            "num_inference_steps": 20, "width": 64, "height": 64, "spacing": "trailing",
            "guidance_interval": [0.2, 0.8], "scheduler_names": name, "prompt_weights": False,
        }  # fmt: skip
        assert found.grid == expected
        assert all("here differs from" in note for note in found.notes)


# ---- ComfyUI -----------------------------------------------------------------------------------


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def graph(**changed):
    nodes = {
        "4": node("CheckpointLoaderSimple", ckpt_name="sd\\v1-5-pruned.safetensors"),
        "5": node("EmptyLatentImage", width=64, height=96, batch_size=1),
        "6": node("CLIPTextEncode", text="a embedding:my-fish.pt, (red:1.2)", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="ugly", clip=["4", 1]),
        "3": node(
            "KSampler", seed=2**32 + 9, steps=25, cfg=6.0, sampler_name="dpmpp_2m",
            scheduler="karras", denoise=1.0, model=["4", 0], positive=["6", 0], negative=["7", 0],
            latent_image=["5", 0],
        ),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }  # fmt: skip
    return nodes | changed


def comfy(tmp_path, nodes):
    return read_foreign(with_texts(tmp_path / "c.png", prompt=json.dumps(nodes), workflow="{}"))


CONCEPT = "its prompt uses the concepts my-fish; name their files in concepts.files"
EXPECTED = {
    "prompts": "a my-fish, (red:1.2)", "negative_prompts": "ugly", "seeds": 9, "width": 64,
    "height": 96, "num_inference_steps": 25, "guidance_scales": 6.0,
    "scheduler_names": "dpmsolver++-karras",
}  # fmt: skip


def test_the_default_graph_is_read(tmp_path):
    found = comfy(tmp_path, graph())
    assert (found.tool, found.model) == ("ComfyUI", "sd\\v1-5-pruned.safetensors")
    assert found.grid == EXPECTED
    assert found.notes == [CONCEPT]


def test_a_webp_file_has_the_graph_in_its_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph())
    exif[0x010F] = "workflow:{}"
    Image.new("RGB", (64, 64)).save(tmp_path / "c.webp", exif=exif)
    assert read_foreign(tmp_path / "c.webp").grid == EXPECTED


def test_values_in_nodes_of_their_own_and_custom_samplers(tmp_path):
    changed = graph()
    del changed["3"]
    changed |= {
        "20": node("PrimitiveInt", value=77),
        "21": node("RandomNoise", noise_seed=["20", 0]),
        "22": node("KSamplerSelect", sampler_name="euler"),
        "23": node("BasicScheduler", scheduler="simple", steps=10, denoise=1.0, model=["4", 0]),
        "24": node("CFGGuider", cfg=3, model=["4", 0], positive=["6", 0], negative=["7", 0]),
        "25": node("SamplerCustomAdvanced", noise=["21", 0], guider=["24", 0], sampler=["22", 0],
                   sigmas=["23", 0], latent_image=["5", 0]),
        "26": node("PrimitiveString", value="a cat"),
        "6": node("CLIPTextEncode", text=["26", 0], clip=["4", 1]),
        "8": node("VAEDecode", samples=["25", 0], vae=["4", 2]),
    }  # fmt: skip
    found = comfy(tmp_path, changed)
    assert found.grid == {
        "prompts": "a cat", "negative_prompts": "ugly", "seeds": 77, "width": 64, "height": 96,
        "num_inference_steps": 10, "guidance_scales": 3.0, "scheduler_names": "euler",
        "spacing": "trailing",
    }  # fmt: skip
    assert found.notes == [
        "its first noise is up to 0.5 % larger or smaller; expect nearly the same image"
    ]


def test_prompts_that_are_no_texts(tmp_path):
    nodes = graph() | {
        "40": node("ConditioningZeroOut", conditioning=["6", 0]),
        "41": node("StringFunction", action="append", text_a="a", text_b="b"),
        "6": node("CLIPTextEncode", text=["41", 0], clip=["4", 1]),
    }
    nodes["3"]["inputs"]["negative"] = ["40", 0]
    found = comfy(tmp_path, nodes)
    assert (found.grid["prompts"], found.grid["negative_prompts"]) == ("", "")
    assert found.notes == [
        "the negative prompt is zeros, not text; an empty one is used",
        "the positive prompt is put together by unknown nodes; it is left empty",
        "unknown nodes are left out: StringFunction",
    ]


def test_the_first_pass_of_a_hires_graph_is_made(tmp_path):
    first = graph()["3"]["inputs"]
    nodes = graph() | {
        "10": node("LatentUpscale", samples=["3", 0], width=1024, height=1024),
        "11": node("KSampler", **first | {"latent_image": ["10", 0], "denoise": 0.5, "steps": 9}),
        "12": node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="x"),
        "8": node("VAEDecode", samples=["11", 0], vae=["4", 2]),
        "13": node("ControlNetApply", conditioning=["6", 0], strength=1.0),
    }  # fmt: skip
    nodes["3"]["inputs"] |= {"model": ["12", 0], "positive": ["13", 0]}
    found = comfy(tmp_path, nodes)
    assert found.grid == EXPECTED
    assert found.notes == [
        "ControlNet is not supported; it is left out",
        "LoRA is not supported; it is left out",
        "further passes (hires fix) are not supported; only the first one is made",
        "hires fix and enlarging is not supported; it is left out",
        CONCEPT,
        "the node ControlNetApply on the positive prompt is left out",
    ]


def test_what_a_graph_does_besides_is_named(tmp_path):
    nodes = graph() | {
        "5": node("VAEEncode", pixels=["30", 0], vae=["4", 2]),
        "30": node("LoadImage", image="x.png"),
        "31": node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2),
        "32": node("FreeU\x1b[2J", model=["4", 0]),
    }
    nodes["6"]["inputs"]["clip"] = ["31", 0]
    nodes["3"]["inputs"] |= {"model": ["32", 0], "sampler_name": "euler_ancestral"}
    nodes["8"]["inputs"]["vae"] = ["33", 0]
    nodes["33"] = node("VAELoader", vae_name="other.safetensors")
    found = comfy(tmp_path, nodes)
    assert found.clip_skip == 1
    assert found.notes == [
        "an initial image is not supported; the image starts from noise",
        "euler-ancestral here differs from euler_ancestral there; expect a similar but different "
        "image",
        "it names no height; the default is used",
        "it names no width; the default is used",
        "its VAE was other.safetensors; name the file in model.vae",
        CONCEPT,
        "its schedule 'karras' is not supported with euler-ancestral",
        "unknown nodes are left out: FreeU?[2J",
    ]


CIRCLE = graph(**{"6": node("CLIPTextEncode", text=["6", 0], clip=["7", 0]),
                  "7": node("Reroute", x=["6", 0]), "5": node("Reroute", x=["3", 0])})  # fmt: skip
HOSTILE = {
    "nested": "[" * 100_000,
    "nested in a node": '{"1": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
    "a list": "[1, 2]",
    "no nodes": '{"1": 5, "2": {"class_type": 3}, "3": {"class_type": "KSampler", "inputs": []}}',
    "no sampler": json.dumps({"1": node("SaveImage", images=["2", 0])}),
    "no json": "a fish",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs_end_in_a_sentence(tmp_path, name):
    path = with_texts(tmp_path / "c.png", prompt=HOSTILE[name])
    with pytest.raises(UserError, match="ComfyUI graph"):
        read_foreign(path)


def test_circles_and_wrong_types_are_no_more_than_unknown(tmp_path):
    found = comfy(tmp_path, CIRCLE)
    assert (found.grid["prompts"], found.grid["seeds"]) == ("", 9)
    assert "the negative prompt is put together by unknown nodes; it is left empty" in found.notes
    inputs = {
        "seed": {"a": 1}, "steps": "many", "cfg": None, "sampler_name": ["9"], "scheduler": 5,
        "positive": [], "negative": [["x"], 0], "latent_image": "5", "denoise": [[], []],
    }  # fmt: skip
    found = comfy(tmp_path, graph(**{"3": node("KSampler", **inputs)}))
    assert found.grid == {"prompts": "", "negative_prompts": ""}
    assert "it names no seed; the default is used" in found.notes


@pytest.mark.parametrize(
    "text",
    ["", "a fish", "a fish\nSteps: 20", "x" * 10_000, ',:,:,:,:,\n:,:,:"', "Steps Sampler Seed,,,"],
)
def test_a_text_that_is_not_a1111s_ends_in_a_sentence(tmp_path, text):
    with pytest.raises(UserError, match="not A1111's settings"):
        read_foreign(with_texts(tmp_path / "a.png", parameters=text))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Steps: 20, Sampler: Euler, Seed: 1, Size: 65x64", "must be a multiple of 8"),
        ("Steps: 0, Sampler: Euler, Seed: 1, Size: 64x64", "must be at least 1"),
        ("Steps: 1, Sampler: Euler, Seed: 1, CFG scale: nan", "must be a number"),
        ("Steps: 1, Sampler: Euler, Seed: 1, Size: 99999999x64", "must be at most 8192"),
    ],
)
def test_values_out_of_bounds_end_in_a_sentence(tmp_path, capsys, line, said):
    path = with_texts(tmp_path / "a.png", parameters=f"a fish\n{line}")
    assert main(["generate", "--from", str(path), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_an_image_is_made_of_each(tmp_path, tiny_model, capsys):
    """It uses the named model; unsupported settings are reported first."""
    line = "Steps: 2, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 32x32, Model: other, "
    line += "Clip skip: 2"
    model = f"model.pretrained_model_name_or_path={tiny_model}"
    files = [with_texts(tmp_path / "a.png", parameters=f"a fish\n{line}")]
    nodes = graph()
    nodes["5"]["inputs"] |= {"width": 32, "height": 32}
    nodes["3"]["inputs"]["steps"] = 2
    files.append(with_texts(tmp_path / "c.png", prompt=json.dumps(nodes)))
    for file in files:
        out = tmp_path / file.stem
        command = ["generate", "--from", str(file), "--set", model, "--output-dir", str(out)]
        assert main(command) == 0
        record = png.read_record(out / "images" / "job-00000.png")
        assert (record["num_inference_steps"], record["width"]) == (2, 32)
    said = capsys.readouterr().out
    assert (
        f"a.png was made with A1111\n  its model was other, this image will use {tiny_model}"
        in said
    )
    assert f"  {GPU}\n" in said
    assert "c.png was made with ComfyUI\n  its model was v1-5-pruned.safetensors, this" in said
    assert f"  {CONCEPT}\n" in said
