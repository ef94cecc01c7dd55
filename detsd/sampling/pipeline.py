"""Images from prompts with concepts in them; knows nothing of the cluster.

pipe = DetSDTextualInversionPipeline.from_pretrained("demo_model")
pipe.load_concepts("learned_embeddings_dict_demo.pt")
pipe("a watercolor painting of a det-logo-demo", guidance_scale=4).images[0]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.prompts import misspelled_concepts, unweighted
from detsd.concepts.reading import find_concepts
from detsd.config import ModelConfig
from detsd.models.base import BaseModel, Conditioning, TimeIds
from detsd.models.loading import DTYPES, load_base_model, load_safety_checker
from detsd.sampling.denoise import decode, denoise, starting_noise
from detsd.sampling.jobs import GeneratedImage, Job, StepInfo, batches
from detsd.sampling.stock import SCHEDULERS, _in_float32
from detsd.utils import png
from detsd.utils.errors import UserError
from detsd.utils.memory import fitting_batch_size, is_out_of_memory

logger = logging.getLogger("detsd")

# What may be given to a call by place, as in `StableDiffusionPipeline`.
PLACES = ("height", "width", "num_inference_steps", "timesteps", "sigmas", "guidance_scale")


class DetSDTextualInversionPipeline:
    """A base model with concepts in it.

    Attributes:
        model: the frozen base model.
        vocabulary: its concepts.
        stock: the diffusers pipeline of the same parts, behind `__call__`; its methods for saving
            memory (`enable_vae_slicing`, `enable_attention_slicing`) work on all images.
        sources: where each loaded concept came from, by its name.
        named: what was named to load it, by its name: a run's folder, say.
    """

    def __init__(
        self,
        model: BaseModel,
        scheduler_name: str = "ddim",
        safety_checker: Any = None,
        feature_extractor: Any = None,
    ):
        self.model = model
        self.vocabulary = model.vocabulary
        self.sources: dict[str, str] = {}
        self.named: dict[str, str] = {}
        self.most_pixels = sys.maxsize  # of images made at once; less when memory ran out
        self.stock = model.stock_pipeline(
            _in_float32(self._scheduler(scheduler_name)), safety_checker, feature_extractor
        )
        self.stock.set_progress_bar_config(disable=True)
        if model.device.type == "cuda":
            # Decoding needs more memory than denoising; one image at a time it is bounded.
            model.vae.enable_slicing()
        # The stock pipeline hands the VAE what the UNet computes in, also where it has another
        # precision, as Stable Diffusion XL's has beside fp16.
        (model.vae.post_quant_conv or model.vae.decoder).register_forward_pre_hook(
            lambda part, given: (given[0].to(next(part.parameters()).dtype), *given[1:])
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str = "demo_model",
        *,
        revision: str | None = None,
        precision: str = "auto",
        device: str | torch.device | None = None,
        scheduler_name: str = "ddim",
        safety_checker: bool = True,
        concepts: Iterable[str | Path] = (),
        uuids: Iterable[str] = (),
    ) -> DetSDTextualInversionPipeline:
        """Load a base model, with its safety checker where it has one.

        Args:
            pretrained_model_name_or_path: a diffusers folder, a single file, or a hub model.
            precision: fp32, bf16, fp16, or auto (what the device does well).
            device: default: the GPU where there is one, else the CPU.
            concepts, uuids: loaded too, as by `load_concepts` and `load_from_uuids`; whether they
                fit the model is found out before its weights are fetched.

        Raises:
            UserError: a model that cannot be loaded, an unknown scheduler, concepts that cannot be
                loaded or do not fit.
        """
        learned = [find_concepts(source) for source in concepts]
        learned += [find_concepts(f"uuid:{uuid}") for uuid in uuids]
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = ModelConfig(pretrained_model_name_or_path, revision, precision)
        model = load_base_model(config, device, [c for found, *_ in learned for c in found])
        checker = (None, None)
        if safety_checker:
            of_the_same = dataclasses.replace(config, revision=model.commit or revision)
            checker = load_safety_checker(of_the_same, device, model.dtype)
        pipe = cls(model, scheduler_name, *checker)
        for found in learned:
            pipe.add(*found)
        return pipe

    # ---- concepts ----------------------------------------------------------------------------

    @property
    def concepts(self) -> list[str]:
        """The words that prompts may use."""
        return self.vocabulary.names

    def load_concepts(self, *paths: str | Path) -> list[str]:
        """Load concepts; the new words.

        Args:
            paths: concept files of any layout, checkpoint folders, or run folders, which stand for
                their best checkpoint; `path=word` gives a concept that word.

        Raises:
            UserError: a missing or damaged file, a concept of another width, one loaded twice.
        """
        return [word for path in paths for word in self.add(*find_concepts(path))]

    def load_from_uuids(self, uuids: Iterable[str]) -> list[str]:
        """Load concepts of Determined checkpoints; the new words.

        The master and the login are those of the `det` command line. A checkpoint is downloaded
        once and kept in `~/.cache/detsd`.

        Args:
            uuids: `uuid`, or `uuid=word`, which gives its only concept that word.

        Raises:
            UserError: no master, an unknown uuid, or what `load_concepts` raises.
        """
        return [word for uuid in uuids for word in self.add(*find_concepts(f"uuid:{uuid}"))]

    def add(self, concepts: list[LearnedConcept], source: str, named: str) -> list[str]:
        """Add concepts, all or none; their words.

        Args:
            source: what an image of theirs notes.
            named: what they are read again from.

        Raises:
            UserError: as `Vocabulary.check`.
        """
        for concept in concepts:  # first: of a file that holds a bad one, none is loaded
            self.vocabulary.check(concept)
        for concept in concepts:
            self.vocabulary.add(concept)
            self.sources[concept.name] = source
            self.named[concept.name] = named
        return [concept.name for concept in concepts]

    def unload(self, name: str) -> None:
        """Forget a concept.

        Raises:
            UserError: no such concept.
        """
        self.vocabulary.remove(name)
        self.sources.pop(name, None)

    def reload(self, name: str) -> None:
        """Read a concept again from where it came from; the old one stays where that fails.

        Raises:
            UserError: no such concept, or its source is not there or holds it no more.
        """
        old = [c for c in self.vocabulary.concepts() if c.name == name]
        if not old:
            self.vocabulary.remove(name)  # which tells those that are loaded
        source, named = self.sources[name], self.named[name]
        found, newest, _ = find_concepts(named)
        new = [c for c in found if c.name == name]
        if not new:
            raise UserError(f"{newest} holds no concept {name!r} any more; load it anew")
        self.unload(name)
        try:
            self.add(new, newest, named)
        except UserError:
            self.add(old, source, named)
            raise

    def identity(self, text: str) -> dict[str, dict[str, str]]:
        """The concepts that occur in a text: name -> where from, and a digest of the rows."""
        used = set(self.vocabulary.rewrite.words_in(text))
        return {
            c.name: {
                "source": self.sources.get(c.name, ""),
                "sha256": c.digest,
            }
            for c in self.vocabulary.concepts()
            if c.name in used
        }

    def prompt_warnings(self, prompt: str) -> list[str]:
        """Return a sentence for each misspelled concept, attention weight and truncated end."""
        found = misspelled_concepts(prompt, self.concepts, self.vocabulary.is_word)
        return found + self.unsupported_weights(prompt) + self.truncated(prompt)

    def unsupported_weights(self, prompt: str) -> list[str]:
        """A sentence where a prompt weighs words, as other programs understand it."""
        found = []
        if unweighted(prompt) != prompt:
            found.append(
                f"the prompt {prompt!r} weighs words, which detsd does not: it "
                f"reads {unweighted(prompt)!r}"
            )
        if marks := re.findall(r"\[[^\[\]]+\]|\(\([^()]+\)\)", prompt):
            found.append(
                f"the prompt {prompt!r} has {' '.join(marks)}, which other programs take for a "
                "weight and the model for brackets; leave the brackets out"
            )
        return found

    def truncated(self, prompt: str, name: str = "prompt") -> list[str]:
        """A sentence where a prompt is longer than the model's window, which cuts it off."""
        if self.vocabulary.fits_without_tokenizing(prompt):
            return []
        window, length = self.vocabulary.window, self.vocabulary.length(prompt)
        if length <= window:
            return []
        lost = self.vocabulary.truncated_concepts(prompt)
        also = f", concept {', '.join(lost)} among them" if lost else ""
        return [
            f"the {name} {textwrap.shorten(prompt, 80, placeholder=' ...')!r} has {length} tokens "
            f"and the model reads {window}: its last words are cut off{also}; shorten it"
        ]

    # ---- images ------------------------------------------------------------------------------

    @property
    def own_scheduler(self) -> str:
        """The short name of the sampler that the model brings along; ddim for one not in ours."""
        own = self.model.sampling_scheduler_config.get("_class_name")
        return next((name for name, kind in SCHEDULERS.items() if kind.__name__ == own), "ddim")

    def check(self, jobs: list[Job]) -> None:
        """Whether the model can make these jobs.

        Raises:
            UserError: as many steps as the model has timesteps, for which diffusers' samplers,
                one timestep ahead, find no noise level any more.
        """
        most = self.model.scheduler.config.num_train_timesteps
        for job in jobs:
            if job.num_inference_steps >= most:
                raise UserError(
                    f"num_inference_steps: {job.num_inference_steps} must be less than the {most} "
                    f"timesteps of {self.model.name}; 25 to 50 will do"
                )

    def _scheduler(self, name: str):
        """A sampler by its short name, from the model's own scheduler configuration."""
        if name not in SCHEDULERS:
            raise UserError(f"scheduler {name!r} is unknown; use one of {', '.join(SCHEDULERS)}")
        # Latents have no bounds to be clipped to. diffusers sees to both where it loads a pipeline.
        options = {**self.model.sampling_scheduler_config, "clip_sample": False, "steps_offset": 1}
        if name == "pndm":
            options.setdefault("skip_prk_steps", True)  # as Stable Diffusion's own PNDM has it
        return SCHEDULERS[name].from_config(options)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *places: Any,
        negative_prompt: str | list[str] | None = None,
        scheduler_name: str | None = None,
        **options: Any,
    ):
        """As `StableDiffusionPipeline.__call__`, with concepts in the prompts.

        `scheduler_name` changes the sampler from here on; all other options are diffusers' own,
        of which those up to `guidance_scale` may also be given by place, as there.
        """
        if scheduler_name:
            self.stock.scheduler = _in_float32(self._scheduler(scheduler_name))
        options |= dict(zip(PLACES, places, strict=False))  # other places in XL's pipeline
        if options.get("latents") is None and self.model.dtype != torch.float32:
            options["latents"] = self._starting_latents(prompt, **options)
        return self.stock(
            self._rewritten(prompt), negative_prompt=self._rewritten(negative_prompt), **options
        )

    def _starting_latents(
        self,
        prompt: str | list[str] | None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        **options: Any,
    ) -> torch.Tensor:
        """The noise (B, C, h, w) that diffusers would draw, but drawn in float32."""
        count = len(prompt if isinstance(prompt, list) else options.get("prompt_embeds", [None]))
        size, factor = self.model.image_size, self.model.vae_scale_factor
        shape = (
            self.model.unet.config.in_channels,
            (height or size) // factor,
            (width or size) // factor,
        )
        many = isinstance(generator, list)
        noise = [
            torch.randn((1, *shape) if many else (count * num_images_per_prompt, *shape),
                        generator=g, device=g.device if g else "cpu")
            for g in (generator if many else [generator])
        ]  # fmt: skip
        return torch.cat(noise).to(self.model.device, self.model.dtype)

    def _rewritten(self, prompt: str | list[str] | None) -> str | list[str] | None:
        if isinstance(prompt, list):
            return [self.vocabulary.text(p) for p in prompt]
        return self.vocabulary.text(prompt) if prompt is not None else None

    def make(self, jobs: list[Job], **options: Any) -> list[GeneratedImage]:
        """The images of any jobs, in their order; `options` as for `make_batches`."""
        made = {n: m for batch in self.make_batches(jobs, **options) for n, m in batch.items()}
        return [made[number] for number in sorted(made)]

    def make_batches(
        self,
        jobs: list[Job],
        *,
        at_once: int | None = None,
        fill_up_to: int = 1,
        encodings: dict[tuple, Conditioning] | None = None,
        look: Callable[[StepInfo], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[dict[int, GeneratedImage]]:
        """The images of any jobs by their number in the list, a batch as soon as it is made.

        Jobs that agree in their `batch_key` are made at once, as many as fit into memory; a batch
        that does not fit is halved, and so are those that come after it.

        Args:
            at_once: the most images in a batch; default: what the free memory should hold.
            fill_up_to: fill a smaller batch up with its last job, as far as that fits: the same
                shapes run the same kernels, so that the pixels are those of the larger batch.
            encodings: what the UNet is told of a text, filled and used where the rows do not
                change between calls.
            look: called after each denoising step.
            stop: asked before each denoising step; True ends it after the batches made so far.

        Raises:
            UserError: not even one image fits into memory.
        """
        model = self.model
        encodings = {} if encodings is None else encodings
        todo = batches(jobs, len(jobs))
        done = 0
        while todo:
            numbers = todo.pop(0)
            first = jobs[numbers[0]]
            width, height = first.width or model.image_size, first.height or model.image_size
            limit = at_once or fitting_batch_size(model.device, model.dtype, width, height)
            limit = max(1, min(limit, self.most_pixels // (width * height)))
            if len(numbers) > limit:
                todo[:0] = [numbers[:limit], numbers[limit:]]
                continue
            batch = [jobs[n] for n in numbers]
            batch += batch[-1:] * (min(fill_up_to, limit) - len(batch))

            def look_at(step, steps, timestep, latents, numbers=numbers, done=done):
                share = (done + (step + 1) / steps * len(numbers)) / len(jobs)
                latents = latents[: len(numbers)]
                look(StepInfo(numbers, step + 1, steps, timestep, latents, share))

            try:
                made = self._make_at_once(batch, encodings, look and look_at, stop)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise UserError(
                        f"not even one image of {width} x {height} fits into the memory of "
                        f"{model.device}; make it smaller (grid.width and grid.height), or take "
                        "half precision (model.precision)"
                    ) from None
            else:
                if made is None:
                    return
                done += len(numbers)
                yield dict(zip(numbers, made[: len(numbers)], strict=True))
                continue
            # Out of the handler: the error would hold on to the memory.
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(batch) // 2
            logger.warning(
                "a batch of %d images does not fit into memory; going on with %d", len(batch), half
            )
            self.most_pixels = half * width * height
            todo.insert(0, numbers)

    @torch.no_grad()
    def _make_at_once(
        self,
        jobs: list[Job],
        encodings: dict[tuple, Conditioning],
        look: Callable[[int, int, int, torch.Tensor], None] | None,
        stop: Callable[[], bool] | None,
    ) -> list[GeneratedImage] | None:
        """The images of jobs that agree in their `batch_key`; None when stopped."""
        first, model, stock = jobs[0], self.model, self.stock

        def cond(job: Job, negative: bool) -> Conditioning:
            """One by one: what else is in the batch must not show."""
            frame = self._frame(job)
            key = (job.negative_prompt if negative else job.prompt, negative, frame)
            if key not in encodings:
                call = model.encode_negative_prompts if negative else model.encode_prompts
                encodings[key] = call([key[0]], [frame])
            return encodings[key]

        guided = first.guidance_scale > 1
        generators = [job.generator for job in jobs]
        scheduler = self._scheduler(first.scheduler_name)
        latents = denoise(
            model.unet,
            scheduler,
            first.num_inference_steps,
            starting_noise(generators, self._latent_shape(first)),
            Conditioning.cat([cond(job, False) for job in jobs]),
            Conditioning.cat([cond(job, True) for job in jobs]) if guided else None,
            torch.tensor([j.guidance_scale for j in jobs]),
            generators,
            look and (lambda k, t, latents: look(k, len(scheduler.timesteps), t, latents)),
            stop,
        )
        if latents is None:
            return None
        pixels, flags = decode(model.vae, latents), None
        lost = len(jobs) - int(pixels.isfinite().flatten(1).all(1).sum())
        if lost:
            logger.warning(
                "%d of %d images went beyond the range of %s and are black; set model.precision to "
                "bf16 or fp32",
                *(lost, len(jobs), model.dtype),
            )
        if self.checks_safety:
            pixels, flags = stock.run_safety_checker(pixels, model.device, model.dtype)
        flags = flags or [False] * len(jobs)
        pictures = stock.image_processor.postprocess(pixels, do_denormalize=[not f for f in flags])
        return [GeneratedImage(i, bool(f), len(jobs)) for i, f in zip(pictures, flags, strict=True)]

    @property
    def checks_safety(self) -> bool:
        """Whether images go through a safety checker, which Stable Diffusion XL has none of."""
        return getattr(self.stock, "safety_checker", None) is not None

    def _frame(self, job: Job) -> TimeIds:
        """A whole image of the job's size."""
        height, width = job.height or self.model.image_size, job.width or self.model.image_size
        return (height, width, 0, 0, height, width)

    def _latent_shape(self, job: Job) -> tuple[int, int, int]:
        """(C, h, w) of a job's latents."""
        height, width, factor = *self._frame(job)[:2], self.model.vae_scale_factor
        return (self.model.unet.config.in_channels, height // factor, width // factor)

    def record(self, job: Job) -> dict[str, Any]:
        """All that the pixels of a job depend on, as `images.png` writes it into a file."""
        fields = dataclasses.asdict(job)
        del fields["copy"]
        size = self.model.image_size
        return {
            **fields,
            "seed": job.noise_seed,
            "width": job.width or size,
            "height": job.height or size,
            "model": {
                "pretrained_model_name_or_path": self.model.name,
                "revision": self.model.commit,
                "precision": next(k for k, v in DTYPES.items() if v == self.model.dtype),
                "safety_checker": self.checks_safety,
            },
            "concepts": self.identity(f"{job.prompt} {job.negative_prompt}"),
        }

    def save(self, jobs: list[Job], made: list[GeneratedImage], folder: str | Path) -> list[Path]:
        """Write what `make(jobs)` returned as PNG files with their settings inside.

        Equal settings get the same file name, others another one; `folder` is made.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for job, result in zip(jobs, made, strict=True):
            record = self.record(job) | {"flagged": result.flagged, "batch_size": result.batch_size}
            digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()[:8]
            words = re.sub(r"[^\w-]+", "_", job.prompt)[:60].strip("_") or "image"
            paths.append(folder / f"{words}-seed{record['seed']}-{digest}.png")
            paths[-1].write_bytes(png.encode(result.image, record))
        return paths

    @torch.no_grad()
    def process(
        self, job: Job, picture: Image.Image, moments: int = 8
    ) -> tuple[list[int], list[Image.Image], list[Image.Image]]:
        """What a diffusion model does, at `moments` levels of noise, from most to none.

        The sampler is DDIM: at every step its latents are as noisy as the forward process has them
        at that timestep.

        Args:
            picture: a training image, for the forward process.

        Returns:
            The timesteps, falling to 0; the job's latents there on their way from noise to image,
            decoded (the reverse process); and the picture's latents, mixed with the same noise and
            decoded (the forward process, which training samples are drawn from).
        """
        seen, times = [], []  # latents (1, 4, h, w) after each step, and the step's timestep

        def look(progress: StepInfo) -> None:
            seen.append(progress.latents)
            times.append(progress.timestep)

        job = dataclasses.replace(job, scheduler_name="ddim")
        self.make([job], look=look)
        noise = starting_noise([job.generator], self._latent_shape(job)).to(seen[0])
        times.append(0)
        seen.insert(0, noise)
        last = len(times) - 1
        moments = min(moments, len(times))
        chosen = [round(k * last / max(1, moments - 1)) for k in range(moments)]
        size = (
            noise.shape[-1] * self.model.vae_scale_factor,
            noise.shape[-2] * self.model.vae_scale_factor,
        )
        pixels = self.stock.image_processor.preprocess(picture.resize(size, Image.LANCZOS))
        vae = self.model.vae
        clean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean.float()
        clean = clean * self.model.vae.config.scaling_factor
        noised = [
            self.model.scheduler.add_noise(clean, noise, torch.tensor([times[k]])) for k in chosen
        ]
        noised[-1] = clean
        return (
            [times[k] for k in chosen],
            [self._decoded(seen[k]) for k in chosen],
            [self._decoded(latents) for latents in noised],
        )

    def _decoded(self, latents: torch.Tensor) -> Image.Image:
        """The picture of one image's latents (1, 4, h, w)."""
        return self.stock.image_processor.postprocess(decode(self.model.vae, latents))[0]
