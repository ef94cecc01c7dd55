"""What the bundled model can do: figures, and the sheets of the model card.

    python -m demo_model.evaluate                    # about ten minutes on two CPU cores

Everything is measured on pictures drawn from a seed of their own. Prints the figures, writes
`demo_model/sheets/*.jpg` and `demo_model/sheets/figures.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from demo_model import logo, world
from demo_model.media import COLORED_BACKGROUNDS, COLORS
from demo_model.train import load_tokenizer, psnr, to_tensor
from demo_model.world import Scene
from detsd.concepts import Vocabulary
from detsd.formats import read_concepts
from detsd.images import sheet as labelled
from detsd.loss import prediction_target

HERE = Path(__file__).parent
SHEETS = HERE / "sheets"
FRESH_SEED = 2  # training drew seed 0, validation 1
TRAINED_ON = "core"  # which of world.WORLDS
CONTROL_TIMESTEPS = (250, 450, 600, 750, 900)
CAPTIONS = 10  # the true one and nine others

PROMPTS = (
    "a watercolor painting of a red star on a night sky",
    "a photo of a blue fish on a yellow background",
    "a flat vector illustration of a green tree on ocean waves",
    "an ink doodle of an orange cat on a brick wall",
    "a neon sign of a pink heart on a black background",
    "a Van Gogh painting of a yellow house on the grass, thick strokes",
    "pixel art of a red mushroom on a blue background",
    "a tarot illustration of a white moon on a galaxy",
    "a photo of a purple flower on a green background",
    "a photo of a brown boat on blue stripes",
    "a flat vector illustration of a teal graph of six connected red circles on a white background",
    "a rendering of a brain logo, sharp lines, connected circles, concept art",
)
CONCEPT = "det-logo-demo"
PHRASE = "brain logo, sharp lines, connected circles, concept art"
BY_HAND = (
    "red brain logo, sharp lines, connected yellow circles",
    "brain logo of ten yellow circles joined by red lines",
    "brain logo with red lines and yellow circles",
    "brain logo, sharp red lines, connected yellow circles",
)
CONCEPT_PROMPTS = (
    "a photo of a {} on a white background",
    "a flat vector illustration of a {} on a green background",
    "a watercolor painting of a {} on a night sky",
    "an ink doodle of a {} on yellow stripes",
    "a Van Gogh painting of a {} on a galaxy, thick strokes",
    "a neon sign of a {} on a black background",
    "a tarot illustration of a {} on pink checks",
)


def load(path: Path = HERE) -> StableDiffusionPipeline:
    """The stock pipeline, in float32, without a progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    pipe.to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Denoiser:
    """Denoising error of latents under prompts, at fixed noise and timesteps.

    `rewrite` turns a prompt with concepts into one with their placeholder tokens.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        timesteps: tuple[int, ...] = CONTROL_TIMESTEPS,
        rewrite: Callable[[str], str] = str,
    ):
        self.pipe, self.rewrite = pipe, rewrite
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.t = torch.tensor(timesteps)
        side = pipe.unet.config.sample_size
        self.noise = torch.randn(
            (len(timesteps), 4, side, side), generator=torch.Generator().manual_seed(5)
        )

    @torch.no_grad()
    def latents(self, images: list[Image.Image]) -> torch.Tensor:
        """Scaled posterior means (B, 4, h, w)."""
        x = to_tensor(np.stack([np.asarray(image) for image in images]), "cpu")
        return self.pipe.vae.encode(x).latent_dist.mode() * self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def states(self, prompts: list[str]) -> torch.Tensor:
        """Text encoder states (B, 77, D)."""
        ids = self.pipe.tokenizer(
            [self.rewrite(p) for p in prompts],
            padding="max_length",
            max_length=77,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.pipe.text_encoder(ids).last_hidden_state

    @torch.no_grad()
    def errors(self, x: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Mean squared error (P,) of one latent (4, h, w) under each of P prompts."""
        steps, count = len(self.t), len(prompts)
        x = x.expand(steps, -1, -1, -1)
        noisy = self.scheduler.add_noise(x, self.noise, self.t)
        target = prediction_target(self.scheduler, x, self.noise, self.t)
        hidden = self.states(prompts).repeat_interleave(steps, 0)  # (P * steps, 77, D)
        said = self.pipe.unet(noisy.repeat(count, 1, 1, 1), self.t.repeat(count), hidden).sample
        error = (said - target.repeat(count, 1, 1, 1)).pow(2).mean((1, 2, 3))
        return error.view(count, steps).mean(1)


def variants(scene: Scene, attribute: str, rng: np.random.Generator) -> list[Scene]:
    """Up to nine scenes whose captions differ from `scene`'s in one attribute."""
    kinds = world.WORLDS[TRAINED_ON]
    if attribute == "color":
        taken = {scene.color, scene.background_color, scene.accent if scene.is_graph else None}
        options = [dataclasses.replace(scene, color=c) for c in COLORS if c not in taken]
    elif attribute == "style":
        options = [dataclasses.replace(scene, medium=m) for m in kinds.media if m != scene.medium]
    elif attribute == "object":
        solid = [
            dataclasses.replace(scene, kind=k, count=0, inner=0)
            for k in kinds.kinds
            if k != scene.kind
        ]
        logos = [
            dataclasses.replace(scene, kind=f"{k} logo", count=scene.count or 8)
            for k in kinds.outlines
            if f"{k} logo" != scene.kind
        ]
        options = solid + logos
    else:
        options = [
            dataclasses.replace(scene, background=b, background_color=c)
            for b in kinds.backgrounds
            for c in (COLORS if b in COLORED_BACKGROUNDS else (None,))
            if (b, c) != (scene.background, scene.background_color)
        ]
        rng.shuffle(options)
        # One of each kind of ground first, then the second of each: not nine plain ones.
        seen: Counter[str] = Counter()
        turns = []
        for option in options:
            turns.append(seen[option.background])
            seen[option.background] += 1
        return [options[k] for k in np.argsort(turns, kind="stable")][: CAPTIONS - 1]
    rng.shuffle(options)
    return options[: CAPTIONS - 1]


# Of an image, a function from a list of captions to the index of the best.
Judge = Callable[[Image.Image], Callable[[list[str]], int]]


def by_denoising(pipe: StableDiffusionPipeline) -> Judge:
    """The caption under which the image's latents are denoised best (arXiv 2303.16203)."""
    denoiser = Denoiser(pipe)

    def judge(image: Image.Image) -> Callable[[list[str]], int]:
        x = denoiser.latents([image])[0]
        return lambda captions: int(denoiser.errors(x, captions).argmin())

    return judge


def by_similarity(clip: CLIPModel) -> Judge:
    """The caption nearest to the image in CLIP's space."""
    tokenizer = load_tokenizer()
    return lambda image: (
        lambda captions: int(clip_logits(clip, tokenizer, [image], captions).argmax())
    )


def caption_control(judge: Judge, count: int = 200, first: int = 0) -> dict[str, float]:
    """Share of pictures whose true caption is judged the best, per attribute.

    Of ten captions; of eight for the style, since the world has eight.
    """
    right = dict.fromkeys(("color", "object", "background", "style"), 0)
    for index in range(first, first + count):
        image, _, scene = world.picture(FRESH_SEED, index, TRAINED_ON)
        best = judge(image)
        rng = np.random.default_rng((FRESH_SEED, index, 1))
        for attribute in right:
            scenes = [scene, *variants(scene, attribute, rng)]
            right[attribute] += best([world.caption(s) for s in scenes]) == 0
    return {name: hits / count for name, hits in right.items()}


@torch.no_grad()
def vae_report(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """Reconstruction in dB on fresh pictures and on the logo; a sheet of the logo."""
    fresh = [world.picture(FRESH_SEED, k, "rich")[0] for k in range(128)]
    logos = [logo.picture(k)[0] for k in range(len(logo.SCENES))]
    result, rows = {}, []
    for name, images in (("vae_psnr_world", fresh), ("vae_psnr_logo", logos)):
        x = to_tensor(np.stack([np.asarray(i) for i in images]), "cpu")
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample
        result[name] = psnr(y, x)
        rows.append(pipe.image_processor.postprocess(y[::4], output_type="pil"))
    sheet([logos[::4], rows[1]], "vae_logo.jpg")
    return result


@torch.no_grad()
def clip_logits(
    clip: CLIPModel, tokenizer: CLIPTokenizer, images: list[Image.Image], captions: list[str]
) -> torch.Tensor:
    """Scaled cosine similarities (images, captions)."""
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]), "cpu")
    return clip(input_ids=ids, pixel_values=pixels).logits_per_image


def clip_report(path: Path = HERE / "clip", count: int = 200) -> dict[str, float]:
    """Share of 256 fresh pictures whose own caption is the nearest; caption control by CLIP."""
    clip = CLIPModel.from_pretrained(path).float()
    images, captions, _ = zip(
        *(world.picture(FRESH_SEED, k, TRAINED_ON) for k in range(256)), strict=True
    )
    nearest = clip_logits(clip, load_tokenizer(), list(images), list(captions)).argmax(1)
    control = caption_control(by_similarity(clip), count)
    return {
        "clip_right_of_256": float((nearest == torch.arange(256)).float().mean()),
        **{f"clip_{name}": share for name, share in control.items()},
    }


def sheet(rows: list[list[Image.Image]], name: str) -> None:
    images = [image.resize((128, 128), Image.Resampling.BICUBIC) for row in rows for image in row]
    SHEETS.mkdir(exist_ok=True)
    world.contact_sheet(images, columns=len(rows[0]), gap=4).save(SHEETS / name, quality=90)


def draw(pipe: StableDiffusionPipeline, prompts, seeds, guidance: float = 4.0, steps: int = 30):
    """Images of each prompt (rows) with each seed (columns)."""
    return [
        pipe(
            [prompt] * len(seeds),
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        ).images
        for prompt in prompts
    ]


def prompt_sheet(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """Prompts x seeds with the stock pipeline, and the seconds of one image."""
    SHEETS.mkdir(exist_ok=True)
    rows = draw(pipe, PROMPTS, range(6))
    labelled(rows, list(PROMPTS)).save(SHEETS / "prompts.jpg", quality=90)
    draw(pipe, PROMPTS[:1], [0])
    began = time.perf_counter()
    draw(pipe, PROMPTS[:1], [0])
    return {"seconds_per_image_30_steps": time.perf_counter() - began}


def with_concepts(pipe: StableDiffusionPipeline, file: Path) -> Denoiser:
    """A denoiser over twenty timesteps whose text encoder knows the concepts of a file."""
    vocabulary = Vocabulary(pipe.tokenizer, pipe.text_encoder)
    for concept in read_concepts(file):
        vocabulary.add(concept)
    return Denoiser(pipe, tuple(range(25, 1000, 50)), vocabulary.rewrite)


def concept_errors(denoiser: Denoiser, count: int = len(logo.SCENES)) -> dict[str, float]:
    """Mean denoising error of fresh logo pictures under the phrase, by-hand captions, the concept.

    The scenes are those of det_logos/, drawn anew: other places, sizes, angles and details.
    """
    first = len(logo.SCENES)
    drawn = [logo.picture(first + k * first // count) for k in range(count)]
    latents = denoiser.latents([image for image, _ in drawn])
    words = (PHRASE, *BY_HAND, CONCEPT)
    totals = np.zeros(len(words))
    for x, (_, place) in zip(latents, drawn, strict=True):
        prompts = [f"a photo of a {w} {place}" for w in words]
        totals += denoiser.errors(x, prompts).numpy()
    return dict(zip(words, (totals / count).tolist(), strict=True))


def concept_report(pipe: StableDiffusionPipeline, file: Path) -> dict[str, float]:
    """Errors of `concept_errors`, and a sheet of the concept in media and places."""
    denoiser = with_concepts(pipe, file)
    errors = concept_errors(denoiser)
    for text, value in errors.items():
        print(f"  {value:.4f}  {text}")
    prompts = [prompt.format(CONCEPT) for prompt in CONCEPT_PROMPTS]
    rows = draw(pipe, [denoiser.rewrite(p) for p in prompts], range(6))
    labelled(rows, prompts).save(SHEETS / "concept.jpg", quality=90)
    return {
        "error_initializer": errors[PHRASE],
        "error_best_by_hand": min(errors[w] for w in BY_HAND),
        "error_learned": errors[CONCEPT],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--count", type=int, default=200, help="pictures of the caption control")
    parser.add_argument(
        "--concept", type=Path, default=HERE.parent / "learned_embeddings_dict_demo.pt"
    )
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = load(args.model)
    figures = vae_report(pipe) | clip_report(args.model / "clip", args.count) | prompt_sheet(pipe)
    control = caption_control(by_denoising(pipe), args.count)
    figures |= {f"control_{name}": share for name, share in control.items()}
    if args.concept.is_file():
        figures |= concept_report(pipe, args.concept)
    figures = {k: round(float(v), 4) for k, v in figures.items()}
    print(json.dumps(figures, indent=1))
    (SHEETS / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
