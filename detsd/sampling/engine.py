"""The sampler: puts jobs into batches that fit into memory, and turns batches into images."""

import logging
import sys
from collections.abc import Callable, Iterator

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor

from detsd.models.base import BaseModel, Conditioning
from detsd.sampling.denoise import decode, denoise
from detsd.sampling.jobs import GeneratedImage, Job, StepInfo, batches
from detsd.sampling.stock import latent_shape, make_scheduler
from detsd.utils.errors import UserError
from detsd.utils.memory import fitting_batch_size, give_back_memory, is_out_of_memory
from detsd.utils.plurals import counted, verb

logger = logging.getLogger("detsd")


class Sampler:
    """A model that makes images of jobs.

    Attributes:
        max_pixels: in all images made at once; lowered when memory runs out.
    """

    def __init__(
        self,
        model: BaseModel,
        diffusers_pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
    ):
        self.model = model
        self.max_pixels = sys.maxsize
        self._pipeline = diffusers_pipeline  # checks images, and turns pixels into PIL images

    @property
    def checks_safety(self) -> bool:
        """True if images go through a safety checker; Stable Diffusion XL has none."""
        return getattr(self._pipeline, "safety_checker", None) is not None

    def make_batches(
        self,
        jobs: list[Job],
        *,
        max_batch_size: int | None = None,
        pad_batch_to: int = 1,
        encodings: dict[tuple, Conditioning] | None = None,
        on_step: Callable[[StepInfo], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[dict[int, GeneratedImage]]:
        """Yield the images of each batch, by job number, as soon as they are made.

        Jobs with the same `batch_key` are made at once, as many as fit into memory. A batch that
        does not fit is halved, and so are those after it.

        Args:
            max_batch_size: default: as many as should fit into the free memory.
            pad_batch_to: pad smaller batches with their last job, as far as memory allows: equal
                shapes run equal kernels, so the pixels equal those of the larger batch.
            encodings: a cache of encoded prompts, for callers whose vectors stay the same.
            on_step: called after each denoising step.
            should_stop: called before each denoising step; True drops the batch and ends.
        """
        encodings = {} if encodings is None else encodings
        chunks = self._chunk_counts(jobs)
        todo, done = batches(jobs, len(jobs), chunks), 0
        while todo:
            numbers = todo.pop(0)
            limit = self._limit(jobs[numbers[0]], max_batch_size)
            if len(numbers) > limit:
                todo[:0] = [numbers[:limit], numbers[limit:]]
                continue
            batch = [jobs[n] for n in numbers]
            batch += batch[-1:] * (min(pad_batch_to, limit) - len(batch))

            def report(step, steps, timestep, latents, numbers=numbers, done=done):
                share = (done + (step + 1) / steps * len(numbers)) / len(jobs)
                latents = latents[: len(numbers)]
                on_step(StepInfo(numbers, step + 1, steps, timestep, latents, share))

            try:
                images = self._make_at_once(
                    batch, encodings, on_step and report, should_stop, chunks[numbers[0]]
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Handled below: inside the handler, the error would keep the memory in use.
            else:
                if images is None:
                    return
                done += len(numbers)
                yield dict(zip(numbers, images[: len(numbers)], strict=True))
                continue
            self._halve(batch)
            todo.insert(0, numbers)

    @torch.no_grad()
    def encode_all(self, jobs: list[Job], encodings: dict[tuple, Conditioning]) -> None:
        """Encode the prompts of all jobs to come, and drop the text encoders (1.4 GB for XL)."""
        for job, chunks in zip(jobs, self._chunk_counts(jobs), strict=True):
            for negative in (False, True)[: 1 + job.guided]:
                self._encode(job, chunks, encodings, negative)
        for side in self.model.vocabulary.text_encoders:
            side.drop_layers()  # its table stays: `detsd evaluate` compares concepts with it
        give_back_memory()

    def _size(self, job: Job) -> tuple[int, int]:
        """Return width and height of a job's image in pixels."""
        return job.width or self.model.image_size, job.height or self.model.image_size

    def _limit(self, job: Job, max_batch_size: int | None) -> int:
        """Return how many images of a job's size can be made at once."""
        width, height = self._size(job)
        fits = max_batch_size or fitting_batch_size(
            self.model.device, self.model.dtype, width, height
        )
        return max(1, min(fits, self.max_pixels // (width * height)))

    def _halve(self, batch: list[Job]) -> None:
        """Lower `max_pixels` to half of a batch that ran out of memory."""
        width, height = self._size(batch[0])
        if len(batch) == 1:
            raise UserError(
                f"not even one image of {width} x {height} fits into the memory of "
                f"{self.model.device}; make it smaller (grid.width and grid.height), or use "
                "half precision (model.precision)"
            )
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        logger.warning(
            "a batch of %d images does not fit into memory; continuing with %d", len(batch), half
        )
        self.max_pixels = half * width * height

    @torch.no_grad()
    def _make_at_once(
        self,
        jobs: list[Job],
        encodings: dict[tuple, Conditioning],
        on_step: Callable[[int, int, int, torch.Tensor], None] | None,
        should_stop: Callable[[], bool] | None,
        chunks: int,
    ) -> list[GeneratedImage] | None:
        """Make the images of jobs with equal `batch_key` and prompt length; None if stopped."""
        first, model = jobs[0], self.model
        generators = [job.generator for job in jobs]
        shape = (len(jobs), *latent_shape(model, first.width, first.height))
        scheduler = make_scheduler(model, first.scheduler_name, first.spacing)
        latents = denoise(
            model.unet,
            scheduler,
            first.num_inference_steps,
            randn_tensor(shape, generators, dtype=torch.float32),  # on the CPU
            self._encoded(jobs, chunks, encodings),
            self._encoded(jobs, chunks, encodings, negative=True) if first.guided else None,
            torch.tensor([job.guidance_scale for job in jobs]),
            generators,
            first.guidance_interval,
            on_step and (lambda k, t, latents: on_step(k, len(scheduler.timesteps), t, latents)),
            should_stop,
        )
        if latents is None:
            return None
        if model.device.type == "cpu" and latents[0, 0].numel() >= 64 * 64:
            # Decoding takes more memory than the UNet, whose freed blocks are too small for it.
            # Small images skip this: the demo's would take 1 to 3 % longer.
            give_back_memory()
        return self._pictures(decode(model.vae, latents))

    def _chunk_counts(self, jobs: list[Job]) -> list[int]:
        """Return the number of token chunks of each job: that of its longer prompt."""
        texts = {text for job in jobs for text in (job.prompt, job.negative_prompt)}
        counts = {text: self.model.vocabulary.chunk_count(text) for text in texts}
        return [
            max(counts[job.prompt], counts[job.negative_prompt if job.guided else job.prompt])
            if job.prompt_weights
            else 1
            for job in jobs
        ]

    def _encoded(
        self,
        jobs: list[Job],
        chunks: int,
        encodings: dict[tuple, Conditioning],
        negative: bool = False,
    ) -> Conditioning:
        """Encode prompts one by one, so that the rest of the batch does not change their bits."""
        return Conditioning.cat([self._encode(job, chunks, encodings, negative) for job in jobs])

    def _encode(
        self, job: Job, chunks: int, encodings: dict[tuple, Conditioning], negative: bool
    ) -> Conditioning:
        """Encode a job's prompt, or its negative prompt, unless it is cached."""
        width, height = self._size(job)
        frame = (height, width, 0, 0, height, width)  # the whole image
        prompt = job.negative_prompt if negative else job.prompt
        key = (prompt, negative, frame, chunks, job.prompt_weights)
        if key not in encodings:
            if job.prompt_weights:
                encoded = self.model.encode_weighted_prompt(prompt, frame, chunks)
            else:
                encoded = self.model.encode_prompts([prompt], [frame])
            encodings[key] = self.model.as_negative(encoded, [prompt]) if negative else encoded
        return encodings[key]

    def _pictures(self, pixels: torch.Tensor) -> list[GeneratedImage]:
        """Turn pixels (B, 3, H, W) into pictures, blacked out if the safety checker flags them."""
        count, flags = len(pixels), None
        lost = count - int(pixels.isfinite().flatten(1).all(1).sum())
        if lost:
            logger.warning(
                "%d of %s exceeded the range of %s and %s black; set model.precision to bf16 or "
                "fp32",
                lost, counted(count, "image"), self.model.dtype, verb("are", lost),
            )  # fmt: skip
        if self.checks_safety:
            pixels, flags = self._pipeline.run_safety_checker(
                pixels, self.model.device, self.model.dtype
            )
        flags = flags or [False] * count
        pictures = self._pipeline.image_processor.postprocess(
            pixels, do_denormalize=[not flag for flag in flags]
        )
        return [GeneratedImage(i, bool(f), count) for i, f in zip(pictures, flags, strict=True)]
