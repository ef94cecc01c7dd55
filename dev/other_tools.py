"""Other tools reading the files that detsd writes: other_tools.sh runs this in a venv per tool.

`write` runs with detsd; the other commands run without it, in their tool's venv. Each prints rows
of the table in docs/interoperability.md.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WORDS = {
    "zweig-mark_7": "a photo of a {}, on a table",
    "QuillSign": "a painting of one {} and a {}",
}
STEPS, SEED, SCALE = 5, 3, 4.0


def row(tool: str, read: str, found: str) -> None:
    print(f"| {tool} | {read} | {found} |", flush=True)


def write() -> None:
    """Export a concept under two words; keep detsd's states and pixels for them."""
    from detsd.__main__ import main
    from detsd.sampling.jobs import Job
    from detsd.sampling.pipeline import DetSDTextualInversionPipeline

    source = str(ROOT / "learned_embeddings_dict_demo.pt")
    reference = {}
    for word, prompt in WORDS.items():
        for kind in ("diffusers", "a1111", "kohya", "detsd"):
            command = ["export", f"{source}={word}", "--format", kind, "--output", f"files/{kind}"]
            assert main(command) == 0
        pipe = DetSDTextualInversionPipeline.from_pretrained(str(ROOT / "demo_model"))
        pipe.load_concepts(f"{source}={word}")
        prompt = prompt.replace("{}", word)
        job = Job(prompt, SEED, guidance_scale=SCALE, num_inference_steps=STEPS)
        np.savez(
            f"{word}.npz",
            states=pipe.model.encode_prompts([prompt]).prompt_embeds.detach().numpy(),
            pixels=np.asarray(pipe.make([job])[0].image),
        )
        reference[word] = prompt
    Path("prompts.json").write_text(json.dumps(reference))


def cases():
    """Yield each word, its prompt as other tools need it, and detsd's states and pixels."""
    for word, prompt in json.loads(Path("prompts.json").read_text()).items():
        kept = np.load(f"{word}.npz")
        yield word, prompt.replace(word, word.lower()), kept["states"], kept["pixels"]


def stock(word: str = "", kind: str = "diffusers"):
    """Return diffusers' pipeline of the bundled model, with a word from a file of one format."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(ROOT / "demo_model", safety_checker=None)
    config = {**pipe.scheduler.config, "clip_sample": False, "steps_offset": 1}
    pipe.scheduler = DDIMScheduler.from_config(config)
    pipe.set_progress_bar_config(disable=True)
    if word:
        pipe.load_textual_inversion(str(file_of(word, kind)), token=word.lower())
    return pipe


def file_of(word: str, kind: str) -> Path:
    (path,) = [p for p in Path(f"files/{kind}").rglob("*") if p.stem == word]
    return path


def libraries() -> str:
    return f"diffusers {version('diffusers')}, transformers {version('transformers')}"


def worst(differences: list[float]) -> str:
    return f"{max(differences):.0e}"


def diffusers() -> None:
    import torch

    for kind in ("diffusers", "a1111", "kohya"):
        states, pixels = [], []
        for word, prompt, known, image in cases():
            pipe = stock(word, kind)
            embeds = pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()
            states.append(float(np.abs(embeds.numpy() - known).max()))
            made = pipe(
                prompt, num_inference_steps=STEPS, guidance_scale=SCALE,
                generator=torch.Generator().manual_seed(SEED),
            ).images[0]  # fmt: skip
            pixels.append(float(np.abs(np.asarray(made, int) - image).max()))
        row(libraries(), kind, f"states to {worst(states)}, pixels to {max(pixels):.0f} of 255")


def compel() -> None:
    from compel import Compel, DiffusersTextualInversionManager

    states = []
    for word, prompt, known, _ in cases():
        pipe = stock(word)
        manager = DiffusersTextualInversionManager(pipe)
        encode = Compel(pipe.tokenizer, pipe.text_encoder, textual_inversion_manager=manager)
        states.append(float(np.abs(encode(prompt).detach().numpy() - known).max()))
    row(f"compel {version('compel')} with {libraries()}", "diffusers", f"states to {worst(states)}")


def stablepy() -> None:
    """Call its loader; the package's other imports are for images, and not installed here."""
    folder = Path(importlib.util.find_spec("stablepy").submodule_search_locations[0])
    for name in ("stablepy", "stablepy.diffusers_vanilla"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    constants = types.ModuleType("stablepy.diffusers_vanilla.constants")
    names = ("PROMPT_WEIGHT_OPTIONS", "OLD_PROMPT_WEIGHT_OPTIONS", "SD_EMBED", "CLASSIC_VARIANT",
             "ALL_PROMPT_WEIGHT_OPTIONS")  # fmt: skip
    vars(constants).update({name: {} for name in names})
    sys.modules[constants.__name__] = constants
    module = importlib.import_module("stablepy.diffusers_vanilla.main_prompt_embeds")
    loader = module.Promt_Embedder_SD1()
    for kind in ("diffusers", "a1111"):
        states = []
        for word, prompt, known, _ in cases():
            pipe = stock()
            given = [(word.lower(), str(file_of(word, kind)))]
            loader.apply_ti("StableDiffusionPipeline", given, pipe, "cpu", False)
            embeds = pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach()
            states.append(float(np.abs(embeds.numpy() - known).max()))
        row(
            f"stablepy {version('stablepy')} with {libraries()}", kind, f"states to {worst(states)}"
        )


def sizes() -> None:
    """Write a Stable Diffusion 1 of full size with random weights, and a concept that fits it.

    stable-diffusion.cpp knows only the real sizes.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        UNet2DConditionModel,
    )
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from detsd.__main__ import main
    from detsd.concepts.concept import LearnedConcept
    from detsd.concepts.writing import write_concepts

    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                          num_attention_heads=12)  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    )  # fmt: skip
    unet = UNet2DConditionModel(cross_attention_dim=768)
    parts = {"unet.": unet, "vae.": vae, "te.": CLIPTextModel(text)}
    tensors = {}
    for prefix, part in parts.items():
        for name, tensor in part.half().state_dict().items():
            # transformers 5 omits this prefix.
            start = "text_model." * (prefix == "te." and not name.startswith("text_model."))
            tensors[f"{prefix}{start}{name}"] = tensor.contiguous()
    save_file(tensors, "full_size.safetensors")
    rows = torch.randn(3, 768) * 0.02
    for word in WORDS:
        folder = Path("wide") / word
        folder.mkdir(parents=True)
        write_concepts([LearnedConcept(word, "", (rows,))], folder)
        for kind in ("diffusers", "a1111", "detsd"):
            output = str(folder / kind)
            assert main(["export", str(folder), "--format", kind, "--output", output]) == 0


def sdcpp() -> None:
    from inferna.sd import stable_diffusion as sd

    sd.set_progress_callback(lambda *_: None)

    def image(prompt: str, embedding: tuple[str, str] | None):
        params = sd.SDContextParams(model_path="full_size.safetensors", n_threads=2)
        params.embeddings = [embedding] if embedding else []
        with sd.SDContext(params) as context:
            made = context.generate(prompt=prompt, width=64, height=64, seed=1, sample_steps=1,
                                    cfg_scale=1.0)  # fmt: skip
        return made[0].to_numpy().astype(int)

    for word, prompt, _, _ in cases():
        without = image(prompt, None)
        made = {}
        for kind in ("diffusers", "a1111", "detsd"):
            (path,) = [p for p in Path(f"wide/{word}/{kind}").rglob("*") if p.is_file()]
            made[kind] = image(prompt, (word.lower(), str(path)))
        changed = np.abs(made["a1111"] - without).max()
        apart = max(np.abs(one - made["a1111"]).max() for one in made.values())
        row(f"stable-diffusion.cpp {sd.version()} (inferna {version('inferna')})",
            ", ".join(made), f"`{word.lower()}`: the same pixels from each ({apart} of 255 apart), "
            f"{changed} from those without it")  # fmt: skip


if __name__ == "__main__":
    globals()[sys.argv[1]]()
