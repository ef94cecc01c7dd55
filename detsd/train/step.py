"""One optimizer step of a fine-tuning: forward, backward, optimizer.

step = TrainStep(model, config.training, run.ranks)
parts = step(batches, learning_rate(k, config.training, samples_per_step))
"""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from detsd.config import TrainingConfig
from detsd.data.dataset import Batch
from detsd.models.base import BaseModel, Conditioning
from detsd.models.objective import (
    at_least_float32,
    denoising_error,
    hidden_penalty,
    min_snr_weight,
    norm_penalty,
)
from detsd.runs.ranks import AcceleratedRanks
from detsd.utils.errors import one_line
from detsd.utils.progress import spinner

logger = logging.getLogger("detsd")

LONG_RUN = 5000  # steps above which minutes of compiling pay off (dev/LOG.md)


def learning_rate(step: int, config: TrainingConfig, samples_per_step: int) -> float:
    """Return the rate of step number `step` (from 0): warm-up, then constant, linear or cosine."""
    peak = config.learning_rate * (samples_per_step if config.scale_lr else 1)
    warmup = config.lr_warmup_steps
    if warmup < 1:  # a fraction of all steps, as in transformers
        warmup = math.ceil(warmup * config.num_sgd_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, config.num_sgd_steps - warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return peak * shapes[config.lr_scheduler]


def make_optimizer(
    vectors: tuple[torch.Tensor, ...], config: TrainingConfig
) -> torch.optim.Optimizer:
    """Return Adam, AdamW or SGD over the vectors alone."""
    if config.optimizer_name == "sgd":
        return torch.optim.SGD(vectors, config.learning_rate, weight_decay=config.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer_name](
        vectors,
        config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay if config.optimizer_name == "adamw" else 0.0,
    )


def clip_samples(grad: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Clip a gradient (B, ...) so that no sample's norm exceeds `limit`, a scalar."""
    whole = at_least_float32(grad)
    norms = whole.flatten(1).norm(dim=1).view(-1, *[1] * (grad.dim() - 1))  # (B, 1, ...)
    return (whole * (limit / norms).clamp(max=1)).to(grad.dtype)  # zero norm: inf, so 1


def without_rounding_errors(grad: torch.Tensor) -> torch.Tensor:
    """Return a float64 gradient rounded to bf16, as float64, and any other unchanged.

    In float64, layouts and CPUs differ by about 1e-13 of a gradient, which training would double
    every few steps (dev/LOG.md). Rounded, their gradients are the same number.
    """
    return grad.bfloat16().double() if grad.dtype == torch.float64 else grad


def wants_compiler(config: TrainingConfig, device: torch.device) -> bool:
    """Decide whether to compile, by the configuration and the kind of device alone.

    A resumed run then has the same kernels; a compiled step rounds differently.
    """
    pays = device.type == "cuda" and config.num_sgd_steps >= LONG_RUN
    return config.compile == "on" or (config.compile == "auto" and pays)


def compiled(part: torch.nn.Module) -> Callable[..., Any]:
    """Return a model that is compiled for each bucket shape on first use."""
    return torch.compile(part, dynamic=False)


class TrainStep:
    """Forward, backward and optimizer on this rank's samples; gradients are averaged."""

    def __init__(self, model: BaseModel, config: TrainingConfig, ranks: AcceleratedRanks):
        self.model, self.config, self.ranks = model, config, ranks
        encoders = model.vocabulary.text_encoders
        # The only tensors that train, (N, D), one for each text encoder; their values are float32.
        self.vectors = model.vocabulary.rows
        self.initial_vectors = tuple(v.detach().clone() for v in self.vectors)
        self._mean_norms = [float(e.embedding.weight.float().norm(dim=1).mean()) for e in encoders]
        self.optimizer = make_optimizer(self.vectors, config)
        fp16 = model.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=fp16)
        self._unet: Callable[..., Any] = model.unet
        self._text_encoders: list[Callable[..., Any]] = [e.encoder for e in encoders]
        self.compiled = False  # until `compile` has succeeded

    def __call__(self, batches: Iterator[Batch], lr: float) -> dict[str, torch.Tensor]:
        """Make one step on the next batches.

        Returns:
            The parts of the loss, as detached tensors, because reading one would wait for the
            device. The entry "steps" is 1, or 0 if the fp16 scaler skipped the step.
        """
        accumulated = self.config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, torch.Tensor] = {}
        for _ in range(accumulated):
            loss, parts = self.loss(next(batches).on(self.model.device))
            self.scaler.scale(loss / accumulated).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / accumulated
        for vectors in self.vectors:
            vectors.grad = without_rounding_errors(self.ranks.mean(vectors.grad))
        self.scaler.unscale_(self.optimizer)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.vectors, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for vectors in self.vectors:
            vectors.data.copy_(vectors.data.float())  # as checkpoints store them
        self.optimizer.zero_grad(set_to_none=True)
        # fp16 overflows now and then. The scaler skips such a step, so the means leave it out, too.
        finite = torch.stack(list(sums.values())).isfinite().all()
        counted = {name: torch.where(finite, value, 0.0) for name, value in sums.items()}
        return {"steps": finite.float(), **counted}

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the scalar loss of a batch, and its parts, which include it as "loss"."""
        model, config = self.model, self.config
        cond = model.encode_prompts(batch.prompts, batch.frames, self._text_encoders)
        if config.max_sample_grad_norm and torch.is_grad_enabled():
            self._clip_samples(cond, len(batch.prompts))
        weight = min_snr_weight(model.scheduler, batch.t, config.min_snr_gamma)  # (B,)
        error = denoising_error(model, self._unet, *batch.noising, cond, batch.mask)  # (B,)
        loss = (error * weight).mean()
        parts = {"mse": loss}
        if config.norm_reg_weight:
            parts["norm_reg"] = sum(map(norm_penalty, self.vectors, self._mean_norms))
            loss = loss + config.norm_reg_weight * parts["norm_reg"]
        if config.hidden_reg_weight:
            with torch.no_grad(), model.vocabulary.using(self.initial_vectors):
                initial = model.encode_prompts(batch.prompts, batch.frames)
            parts["hidden_reg"] = hidden_penalty(cond.prompt_embeds, initial.prompt_embeds)
            loss = loss + config.hidden_reg_weight * parts["hidden_reg"]
        return loss, {"loss": loss, **parts}

    def _clip_samples(self, cond: Conditioning, count: int) -> None:
        """Clip the gradient that each of `count` samples sends back into the text encoder.

        Clipping the gradient of the vectors themselves would cost a backward pass per sample.
        """
        limit = self.config.max_sample_grad_norm
        for states in (cond.prompt_embeds, *(cond.added_cond_kwargs or {}).values()):
            if states.requires_grad:  # XL's time ids do not
                # The loss is a mean, and is scaled in fp16. `full` does not wait for a GPU.
                share = limit / (count * self.config.gradient_accumulation_steps)
                scaled = self.scaler.scale(torch.full((), share, device=states.device))
                states.register_hook(partial(clip_samples, limit=scaled))

    def compile(self, batch: Batch) -> None:
        """Compile the models of the step, and try them on a batch.

        Only the step uses the compiled models: samples and validation have other shapes, each of
        which would be compiled anew. If compiling fails or changes the loss, the step continues
        uncompiled.
        """
        plain = self._unet, self._text_encoders
        batch = batch.on(self.model.device)
        with torch.no_grad():
            expected = float(self.loss(batch)[0])
        try:
            with spinner("compiling the training step"):
                self._unet, *self._text_encoders = map(compiled, (plain[0], *plain[1]))
                for _ in range(3):  # CUDA graphs, if used, are recorded by the third pass
                    # Gradients may lie in a graph's own memory, which its next run overwrites.
                    self.optimizer.zero_grad(set_to_none=True)
                    loss = self.loss(batch)[0]
                    loss.backward()
            found = float(loss.detach())
            problem = "" if abs(found - expected) <= 0.02 * expected else "it changes the loss"
        except Exception as error:  # compilers may raise anything
            problem = f"{type(error).__name__}: {one_line(error)}"
        self.optimizer.zero_grad(set_to_none=True)
        self.compiled = not problem
        if problem:
            logger.warning("training.compile: continuing uncompiled (%s)", problem)
            self._unet, self._text_encoders = plain

    @property
    def diverged(self) -> bool:
        """True if the vectors are not finite, or fp16 gradients overflow at every loss scale."""
        collapsed = self.scaler.is_enabled() and self.scaler.get_scale() < 1
        return collapsed or not all(torch.isfinite(v.detach().norm()) for v in self.vectors)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and the scaler's."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the moments have other shapes than the vectors.
        """
        settings = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update((key, value) for key, value in own.items() if key != "params")
        # Without a completed step, for example if fp16 overflowed in each, there are no moments.
        skipped = self.scaler.is_enabled() and not self.optimizer.state
        if isinstance(self.optimizer, torch.optim.Adam) and not skipped:  # includes AdamW
            for vectors in self.vectors:
                held = self.optimizer.state[vectors]
                shapes = [tuple(held[key].shape) for key in ("exp_avg", "exp_avg_sq", "step")]
                if shapes != [vectors.shape, vectors.shape, ()]:
                    raise ValueError("the moments have other shapes than the vectors")
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
