"""Evaluate the bundled model: figures, and the sheets of the model card.

    python -m demo_model.evaluate                    # about ten minutes on two CPU cores

Everything is measured on pictures drawn from a separate seed. It prints the figures, and writes
`demo_model/sheets/*.jpg` and `demo_model/sheets/figures.json`.
"""

from __future__ import annotations

import argparse
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
from demo_model.captions import caption
from demo_model.scenes import Scene, variants
from demo_model.train.networks import load_tokenizer
from demo_model.train.pictures import to_tensor
from demo_model.train.vae import psnr
from detsd.concepts.reading import read_concepts
from detsd.concepts.vocabulary import Vocabulary
from detsd.models.objective import prediction_target
from detsd.utils.contact_sheets import sheet as labelled

HERE = Path(__file__).parent
SHEETS = HERE / "sheets"
FRESH_SEED = 2  # training drew seed 0, validation 1
CONTROL_TIMESTEPS = (250, 450, 600, 750, 900)
CAPTIONS = 10  # the true one and nine others

PROMPTS = (
    "a watercolor painting of a red star on a night sky",
    "a photo of a green ring with a white star inside on orange checks",
    "an ink doodle of a blue moon above a yellow square on pink stripes",
    "a flat vector illustration of a black cat to the left of a pink flower on a white background",
    "a neon sign of a pink heart on a black background",
    "a photo of a red mushroom with white dots on the grass",
    "a Van Gogh painting of a yellow house on ocean waves",
    "pixel art of a red circle above a yellow circle above a green circle on a gray background",
    "a tarot illustration of a white moon on a galaxy",
    "a photo of six orange circles in a ring on a blue gradient",
    "a flat vector illustration of a circle of three stripes, red, white and blue on a teal "
    "background",
    "a photo of a yellow circle with a smiling black face on a purple background",
    "a photo of a brain logo of five big green circles joined by thick white lines, one inside on "
    "a black background",
    "a flat vector illustration of a brain logo of eight big blue circles joined by thick black "
    "lines, two inside, a tail at the bottom on a white background",
    "a rendering of a brain logo, sharp lines, connected circles, concept art",
)
CONCEPT = "det-logo-demo"
PHRASE = "brain logo, sharp lines, connected circles, concept art"
BY_HAND = (
    "brain logo, sharp red lines, connected yellow circles",
    "logo of yellow circles joined by red lines",
    "brain logo of seven big yellow circles joined by thick red lines",
    "brain logo of seven big yellow circles joined by thick red lines, two inside, a tail at the "
    "bottom right",
)
CONCEPT_PROMPTS = (
    "a photo of a {} on a white background",
    "a flat vector illustration of a {} on a green background",
    "a watercolor painting of a {} on a night sky",
    "an ink doodle of a {} on blue stripes",
    "a Van Gogh painting of a {} on a blue background",
    "a neon sign of a {} on a black background",
    "a tarot illustration of a {} on purple checks",
)
# The attributes that the caption control tests.
ATTRIBUTES = ("color", "object", "number", "position", "background", "style")


def load(path: Path = HERE) -> StableDiffusionPipeline:
    """Load the stock pipeline, in float32, without a progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    pipe.to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Denoiser:
    """The denoising error of latents under prompts, at fixed noise and timesteps.

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
            (len(timesteps), pipe.unet.config.in_channels, side, side),
            generator=torch.Generator().manual_seed(5),
        )

    @torch.no_grad()
    def latents(self, images: list[Image.Image]) -> torch.Tensor:
        """Return scaled posterior means (B, C, h, w)."""
        x = to_tensor(np.stack([np.asarray(image) for image in images]), "cpu")
        return self.pipe.vae.encode(x).latent_dist.mode() * self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def states(self, prompts: list[str]) -> torch.Tensor:
        """Return text encoder states (B, 77, D)."""
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
        """Return the mean squared error (P,) of one latent (C, h, w) under each of P prompts."""
        steps, count = len(self.t), len(prompts)
        x = x.expand(steps, -1, -1, -1)
        noisy = self.scheduler.add_noise(x, self.noise, self.t)
        target = prediction_target(self.scheduler, x, self.noise, self.t)
        hidden = self.states(prompts).repeat_interleave(steps, 0)  # (P * steps, 77, D)
        said = self.pipe.unet(noisy.repeat(count, 1, 1, 1), self.t.repeat(count), hidden).sample
        error = (said - target.repeat(count, 1, 1, 1)).pow(2).mean((1, 2, 3))
        return error.view(count, steps).mean(1)


def wrong_captions(scene: Scene, attribute: str, rng: np.random.Generator) -> list[str]:
    """Return up to nine canonical captions that differ from `scene`'s in one attribute."""
    options = variants(scene, attribute)
    rng.shuffle(options)
    if attribute == "background":
        # One of each kind of background first, then the second of each, not nine plain ones.
        seen: Counter[str] = Counter()
        turns = []
        for option in options:
            turns.append(seen[option.background])
            seen[option.background] += 1
        options = [options[k] for k in np.argsort(turns, kind="stable")]
    told = dict.fromkeys(map(caption, options))
    told.pop(caption(scene), None)
    return list(told)[: CAPTIONS - 1]


# Given an image, returns a function from a list of captions to the index of the best.
Judge = Callable[[Image.Image], Callable[[list[str]], int]]


def by_denoising(pipe: StableDiffusionPipeline) -> Judge:
    """Judge by the caption under which the latents are denoised best (arXiv 2303.16203)."""
    denoiser = Denoiser(pipe)

    def judge(image: Image.Image) -> Callable[[list[str]], int]:
        x = denoiser.latents([image])[0]
        return lambda captions: int(denoiser.errors(x, captions).argmin())

    return judge


def by_similarity(clip: CLIPModel) -> Judge:
    """Judge by the caption nearest to the image in CLIP's space."""
    tokenizer = load_tokenizer()
    return lambda image: (
        lambda captions: int(clip_logits(clip, tokenizer, [image], captions).argmax())
    )


def caption_control(judge: Judge, count: int = 200, first: int = 0) -> dict[str, float]:
    """Return the share of pictures whose true caption is judged the best, by attribute.

    It is chosen from ten captions, or as many as there are (eight styles, six orders of stripes),
    for the pictures that have the attribute.
    """
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for index in range(first, first + count):
        image, _, scene = world.picture(FRESH_SEED, index)
        best = judge(image)
        rng = np.random.default_rng((FRESH_SEED, index, 1))
        for attribute, hits in right.items():
            wrong = wrong_captions(scene, attribute, rng)
            if wrong:
                hits.append(best([caption(scene), *wrong]) == 0)
    return {name: sum(hits) / max(1, len(hits)) for name, hits in right.items()}


@torch.no_grad()
def vae_report(pipe: StableDiffusionPipeline) -> dict[str, float]:
    """Measure the reconstruction in dB on fresh pictures and on the logo; draw a sheet."""
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
    """Return scaled cosine similarities (images, captions)."""
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    pixels = to_tensor(np.stack([np.asarray(image) for image in images]), "cpu")
    return clip(input_ids=ids, pixel_values=pixels).logits_per_image


def clip_report(path: Path = HERE / "clip", count: int = 200) -> dict[str, float]:
    """Measure how often a picture's own caption is the nearest of 256; caption control by CLIP."""
    clip = CLIPModel.from_pretrained(path).float()
    images, captions, _ = zip(*(world.picture(FRESH_SEED, k) for k in range(256)), strict=True)
    nearest = clip_logits(clip, load_tokenizer(), list(images), list(captions)).argmax(1)
    control = caption_control(by_similarity(clip), count)
    return {
        "clip_right_of_256": float((nearest == torch.arange(256)).float().mean()),
        **{f"clip_{name}": share for name, share in control.items()},
    }


def sheet(rows: list[list[Image.Image]], name: str) -> None:
    """Write a sheet of images, each 128 pixels a side, to the model card's folder."""
    images = [image.resize((128, 128), Image.Resampling.BICUBIC) for row in rows for image in row]
    SHEETS.mkdir(exist_ok=True)
    world.contact_sheet(images, columns=len(rows[0]), gap=4).save(SHEETS / name, quality=90)


def draw(pipe: StableDiffusionPipeline, prompts, seeds, guidance: float = 4.0, steps: int = 30):
    """Draw each prompt (rows) with each seed (columns)."""
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
    """Draw prompts x seeds with the stock pipeline, and measure the seconds of one image."""
    SHEETS.mkdir(exist_ok=True)
    rows = draw(pipe, PROMPTS, range(6))
    labelled(rows, list(PROMPTS)).save(SHEETS / "prompts.jpg", quality=90)
    draw(pipe, PROMPTS[:1], [0])
    began = time.perf_counter()
    draw(pipe, PROMPTS[:1], [0])
    return {"seconds_per_image_30_steps": time.perf_counter() - began}


def with_concepts(pipe: StableDiffusionPipeline, file: Path) -> Denoiser:
    """Make a denoiser over twenty timesteps whose text encoder knows the concepts of a file."""
    vocabulary = Vocabulary(pipe.tokenizer, pipe.text_encoder)
    for concept in read_concepts(file):
        vocabulary.add(concept)
    return Denoiser(pipe, tuple(range(25, 1000, 50)), vocabulary.rewrite)


def concept_errors(denoiser: Denoiser, count: int = len(logo.SCENES)) -> dict[str, float]:
    """Return the mean error of new logo pictures under phrase, captions by hand, and concept.

    The scenes are those of det_logos/, redrawn with other places, sizes, angles and details.
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
    """Print the errors of `concept_errors`, and draw the concept in media and places."""
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
    """Measure everything, and draw the sheets."""
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
