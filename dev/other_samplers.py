"""Images of A1111's and ComfyUI's samplers compared with ours, with the bundled model.

    pip install --target FOLDER --no-deps k-diffusion==0.1.1.post1 torchdiffeq==0.2.5 \\
        torchsde==0.2.6 trampoline==0.1.2 boltons==26.2.0 scipy==1.17.1
    python -m dev.other_samplers FOLDER

Both tools use k-diffusion. Their own parts (schedules, the scale of the first noise, the place
where noise is drawn, and A1111's DDIM) are rewritten here from their sources: A1111 1.10 and
ComfyUI of 2026. It prints the largest difference of a pixel for each row of the table in
docs/generating.md.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import types
from pathlib import Path

import torch

from detsd.sampling.denoise import decode, denoise
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.sampling.stock import latent_shape, make_scheduler

ROOT = Path(__file__).parent.parent
PROMPT, SEED, SCALE = "a watercolor painting of a red fish", 7, 4.0
FUNCTIONS = {
    "LMS": "lms",
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M Karras": "dpmpp_2m",
    "ddim": "euler",
}


def k_diffusion(folder: str) -> tuple:
    """Import k-diffusion's samplers and denoisers without the packages for its training."""
    sys.path.append(folder)
    for name in ("torchvision", "torchvision.transforms", "k_diffusion"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.transforms"].functional = None
    sys.modules["k_diffusion"].__path__ = [f"{folder}/k_diffusion"]
    names = ("sampling", "external")
    return tuple(importlib.import_module(f"k_diffusion.{name}") for name in names)


class Tools:
    """The bundled model under the samplers of each tool; all images begin with the same noise."""

    def __init__(self, folder: str):
        self.k_sampling, external = k_diffusion(folder)
        self.model = model = DetSDTextualInversionPipeline.from_pretrained("demo_model").model
        self.cond = model.encode_prompts([PROMPT])
        self.negative = model.as_negative(model.encode_prompts([""]), [""])
        self.text = torch.cat([self.negative.prompt_embeds, self.cond.prompt_embeds])
        self.alphas = model.scheduler.alphas_cumprod
        # ComfyUI rounds timesteps, A1111 does not.
        self.a1111_model, self.comfy_model = (
            external.DiscreteVDDPMDenoiser(lambda x, t: self.v(x, t), self.alphas, quantize)
            for quantize in (False, True)
        )
        self.levels = self.a1111_model.sigmas

    @torch.no_grad()
    def v(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(-1)[:1].expand(2)
        inputs = torch.cat([x, x])
        found = self.model.unet(inputs, t, encoder_hidden_states=self.text, return_dict=False)[0]
        negative, positive = found.chunk(2)
        return negative + SCALE * (positive - negative)

    def noise(self, seed: int = SEED) -> tuple[torch.Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((1, *latent_shape(self.model)), generator=generator), generator

    def ours(self, name: str, spacing: str, steps: int) -> torch.Tensor:
        noise, generator = self.noise()
        return denoise(
            self.model.unet, make_scheduler(self.model, name, spacing), steps, noise, self.cond,
            self.negative, torch.tensor([SCALE]), [generator],
        )  # fmt: skip

    def schedule(self, kind: str, steps: int) -> torch.Tensor:
        """Return noise levels, the last of them 0."""
        levels, at = self.levels, self.a1111_model.t_to_sigma
        if kind in ("Uniform", "normal"):
            found = at(torch.linspace(999, 0, steps))
        elif kind in ("SGM Uniform", "sgm_uniform"):
            found = at(torch.linspace(999, 0, steps + 1)[:-1])
        elif kind in ("Simple", "simple"):
            found = levels[[-1 - int(k * 1000 / steps) for k in range(steps)]]
        elif kind in ("DDIM", "ddim_uniform"):
            found = levels[1 :: 1000 // steps].flip(0)
        else:
            return self.k_sampling.get_sigmas_karras(steps, float(levels[0]), float(levels[-1]))
        return torch.cat([found, torch.zeros(1)])

    def sample(self, sampler: str, model, levels, scaled: bool, seed: int | None) -> torch.Tensor:
        """Run k-diffusion; `seed` is for the noise between steps; None: the first generator's."""
        noise, generator = self.noise()
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        options = {}
        if sampler == "Euler a":
            options["noise_sampler"] = lambda *_: torch.randn(noise.shape, generator=generator)
        first = (1 + levels[0] ** 2).sqrt() if scaled else levels[0]
        function = getattr(self.k_sampling, f"sample_{FUNCTIONS[sampler]}")
        return function(model, noise * first, levels, disable=True, **options)

    def a1111(self, sampler: str, settings: list[str], steps: int) -> torch.Tensor:
        if sampler == "DDIM":
            return self.a1111_ddim(steps)
        discard = "discard" in settings
        levels = self.schedule(settings[0], steps + discard)
        levels = torch.cat([levels[:-2], levels[-1:]]) if discard else levels
        return self.sample(sampler, self.a1111_model, levels, "SGM" in settings, None)

    def a1111_ddim(self, steps: int) -> torch.Tensor:
        """Run DDIM down to timestep 1: A1111 omits the step from there to 0."""
        timesteps = list(range(1, 1000, 1000 // steps))
        x, _ = self.noise()
        for t, before in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
            alpha, alpha_before = self.alphas[t], self.alphas[before]
            v = self.v(x, torch.tensor([float(t)]))
            eps = alpha.sqrt() * v + (1 - alpha).sqrt() * x
            clean = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
            x = alpha_before.sqrt() * clean + (1 - alpha_before).sqrt() * eps
        return x

    def comfy(self, sampler: str, kind: str, steps: int) -> torch.Tensor:
        """Run ComfyUI's sampler; if the first level is the largest, scale noise as on an image."""
        levels = self.schedule(kind, steps)
        scaled = (
            math.isclose(levels[0], self.levels[-1], rel_tol=1e-5) or levels[0] > self.levels[-1]
        )
        return self.sample(sampler, self.comfy_model, levels, scaled, SEED + 1)

    def difference(self, one: torch.Tensor, other: torch.Tensor) -> int:
        """Return the largest difference of a pixel, in levels of 255."""
        pixels = [
            (decode(self.model.vae, x).clamp(-1, 1) * 127.5 + 127.5).round() for x in (one, other)
        ]
        return int((pixels[0] - pixels[1]).abs().max())


def main(folder: str) -> None:
    tools = Tools(folder)
    there = {"lms": "LMS", "heun": "Heun", "dpmpp_2m": "DPM++ 2M", "euler": "Euler", "ddim": "ddim"}
    text = (ROOT / "docs" / "generating.md").read_text()
    rows = text[text.index("| sampler, spacing |") :].split("\n\n")[0].splitlines()[2:]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        name, spacing = re.fullmatch(r"`(\S+)`, (\w+)", cells[0]).groups()
        spacing = "leading" if spacing == "any" else spacing
        sampler, *settings = cells[1].split("; ")
        counts = {"divide 1000": (20, 25), "and 1: divide 1000": (19, 24)}.get(cells[2], (20, 30))
        found = []
        for steps in counts:
            ours = tools.ours(name, spacing, steps)
            found.append([tools.difference(ours, tools.a1111(sampler, settings, steps)), None])
            if cells[4]:
                other, kind = cells[4].split(", ")
                theirs = tools.comfy(there[other], kind, steps)
                found[-1][1] = tools.difference(ours, theirs)
        print(cells[0], counts, "A1111, ComfyUI:", found, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
