"""Images from prompts with concepts in them; independent of the cluster.

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from detsd.concepts.concept import LearnedConcept
from detsd.concepts.reading import find_concepts
from detsd.config import ModelConfig
from detsd.models.base import BaseModel
from detsd.models.loading import DTYPES, load_base_model, load_safety_checker
from detsd.sampling.a1111 import a1111_fields, file_digest
from detsd.sampling.call import as_list, call_arguments
from detsd.sampling.denoise import guided_calls
from detsd.sampling.engine import Sampler
from detsd.sampling.jobs import GeneratedImage, Job
from detsd.sampling.stock import SCHEDULERS, check_steps, in_float32, make_scheduler
from detsd.sampling.warnings import JobWarnings
from detsd.utils import png
from detsd.utils.errors import UserError

OTHER_CLIP_SKIP = "%s was learned with model.clip_skip %d, but is used with %d here"

logger = logging.getLogger("detsd")


class DetSDTextualInversionPipeline:
    """A base model with concepts in it.

    Attributes:
        model: the frozen base model.
        vocabulary: its concepts.
        diffusers_pipeline: the pipeline behind `__call__`, with the same parts; its methods that
            save memory (`enable_vae_slicing`, `enable_attention_slicing`) apply to all images.
        sampler: makes images of jobs.
        warnings: called with jobs, returns warnings about them.
        sources: the file or checkpoint of each loaded concept, by name.
        reload_from: the origin of each concept as given, by name, such as a run's folder.
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
        self.reload_from: dict[str, str] = {}
        self.warnings = JobWarnings(model)
        self._scheduler_name = scheduler_name
        self.diffusers_pipeline = model.stock_pipeline(
            in_float32(make_scheduler(model, scheduler_name)), safety_checker, feature_extractor
        )
        self.diffusers_pipeline.set_progress_bar_config(disable=True)
        self.sampler = Sampler(model, self.diffusers_pipeline)
        if model.device.type == "cuda":
            # Decoding needs more memory than denoising; one image at a time limits it.
            model.vae.enable_slicing()
        # diffusers' pipeline gives the VAE latents in the UNet's precision, even if the VAE's
        # precision differs, as Stable Diffusion XL's does with fp16.
        (model.vae.post_quant_conv or model.vae.decoder).register_forward_pre_hook(
            lambda part, inputs: (inputs[0].to(next(part.parameters()).dtype), *inputs[1:])
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
        clip_skip: int = 0,
        vae: str | None = None,
        safety_checker: bool = True,
        concepts: str | Path | Iterable[str | Path] = (),
        uuids: str | Iterable[str] = (),
    ) -> DetSDTextualInversionPipeline:
        """Load a base model, with its safety checker if it has one.

        Args:
            pretrained_model_name_or_path: a diffusers folder, a single file, or a hub model.
            precision: fp64, fp32, bf16, fp16, or auto (what suits the device).
            device: default: the GPU if there is one, else the CPU.
            clip_skip, vae: as in `ModelConfig`.
            concepts, uuids: concepts to load, as with `load_concepts` and `load_from_uuids`; those
                that do not fit the model are refused before its weights are downloaded.
        """
        sources = [*_listed(concepts), *(f"uuid:{uuid}" for uuid in _listed(uuids))]
        learned = [find_concepts(source) for source in sources]
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = ModelConfig(pretrained_model_name_or_path, revision, precision, clip_skip, vae)
        model = load_base_model(config, device, [c for found, *_ in learned for c in found])
        checker = (None, None)
        if safety_checker:
            same_commit = dataclasses.replace(config, revision=model.commit or revision)
            checker = load_safety_checker(same_commit, device, model.dtype)
        pipe = cls(model, scheduler_name, *checker)
        for found in learned:
            pipe.add(*found)
        return pipe

    # ---- concepts ----------------------------------------------------------------------------

    @property
    def concepts(self) -> list[str]:
        """The words that prompts may use."""
        return self.vocabulary.names

    def load_concepts(self, *paths: str | Path | Iterable[str | Path]) -> list[str]:
        """Load concepts; return the new words.

        Args:
            paths: concept files of any layout, checkpoint folders, or run folders, which stand for
                their best checkpoint; `path=word` gives a concept that word.
        """
        every = [find_concepts(path) for given in paths for path in _listed(given)]
        return [word for found in every for word in self.add(*found)]

    def load_from_uuids(self, uuids: str | Iterable[str]) -> list[str]:
        """Load concepts of Determined checkpoints, `uuid` or `uuid=word`; return the new words.

        Master and login are those of `det`. A checkpoint is downloaded once, to `~/.cache/detsd`.
        """
        return self.load_concepts(*(f"uuid:{uuid}" for uuid in _listed(uuids)))

    def add(self, concepts: list[LearnedConcept], source: str, reload_from: str) -> list[str]:
        """Add concepts, all or none; return their words.

        Args:
            source: their origin, as recorded in the settings of an image.
            reload_from: the origin that `reload` reads.
        """
        for concept in concepts:  # first: if one is bad, none is loaded
            self.vocabulary.check(concept)
        for concept in concepts:
            if concept.clip_skip not in (0, self.model.clip_skip):
                skips = concept.clip_skip, self.model.clip_skip
                logger.warning(OTHER_CLIP_SKIP, concept.name, *skips)
            self.vocabulary.add(concept)
            self.sources[concept.name] = source
            self.reload_from[concept.name] = reload_from
        return [concept.name for concept in concepts]

    def unload(self, name: str) -> None:
        """Remove a concept."""
        self.vocabulary.remove(name)
        self.sources.pop(name, None)

    def reload(self, name: str) -> None:
        """Read a concept again from its origin; if that fails, the old one stays."""
        old = [c for c in self.vocabulary.concepts() if c.name == name]
        if not old:
            self.vocabulary.remove(name)  # raises an error that names those loaded
        source, reload_from = self.sources[name], self.reload_from[name]
        found, newest, _ = find_concepts(reload_from)
        new = [c for c in found if c.name == name]
        if not new:
            raise UserError(f"{newest} no longer holds concept {name!r}; load it again")
        self.unload(name)
        try:
            self.add(new, newest, reload_from)
        except UserError:
            self.add(old, source, reload_from)
            raise

    def concept_fingerprints(self, text: str) -> dict[str, dict[str, str]]:
        """Return the source and digest of each concept that occurs in a text."""
        used = self.vocabulary.rewrite.words_in(text)
        return {
            c.name: {"source": self.sources.get(c.name, ""), "sha256": c.digest}
            for c in self.vocabulary.concepts()
            if c.name in used
        }

    # ---- images ------------------------------------------------------------------------------

    @property
    def own_scheduler(self) -> str:
        """The short name of the model's own sampler; ddim if it has none here."""
        own = self.model.sampling_scheduler_config.get("_class_name")
        return next((name for name, kind in SCHEDULERS.items() if kind.__name__ == own), "ddim")

    def check(self, jobs: list[Job], section: str = "") -> None:
        """Refuse jobs that the model cannot make; `section` is that of the configuration."""
        for job in jobs:
            job.check()
            check_steps(self.model, job.scheduler_name, job.num_inference_steps, section)

    def guided_calls(self, job: Job) -> list[bool]:
        """Return, for each UNet call of a job, whether it is guided (two passes, not one)."""
        scheduler = make_scheduler(self.model, job.scheduler_name, job.spacing)
        scheduler.set_timesteps(job.num_inference_steps)
        guided = guided_calls(scheduler, job.num_inference_steps, job.guidance_interval)
        return [job.guided and call for call in guided]

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *args: Any,
        negative_prompt: str | list[str] | None = None,
        scheduler_name: str | None = None,
        **options: Any,
    ):
        """Call diffusers' pipeline with concepts in the prompts.

        `scheduler_name` changes the sampler from this call on. The other options are diffusers' own
        (up to `guidance_scale` also by position), as in `StableDiffusionPipeline.__call__`.
        """
        if scheduler_name:
            scheduler = make_scheduler(self.model, scheduler_name)
            self.diffusers_pipeline.scheduler = in_float32(scheduler)
            self._scheduler_name = scheduler_name
        options = call_arguments(self.model, prompt, negative_prompt, args, options)
        steps = options.get("num_inference_steps") or 50
        job = Job("", 0, num_inference_steps=steps, scheduler_name=self._scheduler_name)
        texts = [*as_list(prompt), *as_list(negative_prompt)]
        self.warnings.log([dataclasses.replace(job, prompt=text) for text in texts])
        return self.diffusers_pipeline(**options)

    def make(self, jobs: list[Job], **options: Any) -> list[GeneratedImage]:
        """Make the images of any jobs, in order, and log warnings about them.

        Args:
            options: as for `Sampler.make_batches`.
        """
        self.check(jobs)
        self.warnings.log(jobs)
        batches = self.sampler.make_batches(jobs, **options)
        made = {number: image for batch in batches for number, image in batch.items()}
        return [made[number] for number in sorted(made)]

    def settings(self, job: Job) -> dict[str, Any]:
        """Return everything that the pixels of a job depend on, as stored in the image's file."""
        model, fields = self.model, dataclasses.asdict(job)
        del fields["copy"]
        # Null if it makes no difference; files from versions without weights have no such key.
        if all(map(self.vocabulary.is_plain, (job.prompt, job.negative_prompt))):
            fields["prompt_weights"] = None
        if job.guidance_interval:
            fields["guidance_interval"] = list(job.guidance_interval)  # as JSON would return it
        precision = next(name for name, dtype in DTYPES.items() if dtype == model.dtype)
        how = {"precision": precision, "safety_checker": self.sampler.checks_safety}
        return {
            **fields,
            "seed": job.noise_seed,
            "width": job.width or model.image_size,
            "height": job.height or model.image_size,
            "model": model.settings | how,
            "concepts": self.concept_fingerprints(f"{job.prompt} {job.negative_prompt}"),
            **({"vae_hash": file_digest(model.vae_file)[:10]} if model.vae_file else {}),
        }

    def encode(self, made: GeneratedImage, record: dict[str, Any]) -> bytes:
        """Encode a PNG file with an image's settings, also in A1111's form."""
        return png.encode(made.image, record, a1111_fields(self.model, record))

    def save(self, jobs: list[Job], made: list[GeneratedImage], folder: str | Path) -> list[Path]:
        """Write the images from `make(jobs)` as PNG files that include their settings.

        Equal settings give the same file name, different ones another. `folder` is created.
        """
        (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
        paths = []
        for job, result in zip(jobs, made, strict=True):
            record = self.settings(job) | result.how
            digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()[:8]
            words = re.sub(r"[^\w-]+", "_", job.prompt)[:60].strip("_") or "image"
            paths.append(folder / f"{words}-seed{record['seed']}-{digest}.png")
            paths[-1].write_bytes(self.encode(result, record))
        return paths


def _listed(given: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """Return sources as a list: a single one counts as a list of one, as in a configuration."""
    return [given] if isinstance(given, str | Path) else list(given)
