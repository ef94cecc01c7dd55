"""Fine-tunings that the page starts: `python -m detsd finetune` in a process of its own.

    learning.start("my-cat", "grey cat", pictures)

Each has a folder under `outputs/`, named after its word: `finetune.yaml`, copies of the pictures,
and what every fine-tuning leaves there. The command line goes on with it as the page does.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from detsd.app.run_status import CONFIG, LOG, PICTURES, SAMPLES, RunStatus, _config, _jobs
from detsd.config import TrainingConfig, load_config
from detsd.runs.folder import RunFolder, read_metadata
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.train.preflight import check_finetune
from detsd.utils import contact_sheets
from detsd.utils.errors import UserError
from detsd.utils.paths import BUNDLED, file_name, resolve

MOST_FRAMES = 24  # of a time-lapse that is drawn again and again


class TrainingRuns:
    """The fine-tunings of a page, of which one runs at a time.

    Args:
        pipe: whose model they use.
        root: the folder that their folders are in.
    """

    def __init__(self, pipe: DetSDTextualInversionPipeline, root: Path):
        self.pipe, self.root = pipe, root
        self.folder: Path | None = None  # of the last one that was started here
        self._process: subprocess.Popen | None = None
        self._stopping = self._taken = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def busy(self) -> str:
        """Why nothing else can be made now; "" where it can."""
        return f"{self.folder} is being learned; wait for it, or stop it" if self.running else ""

    def usual(self) -> TrainingConfig:
        """What is set where the form says nothing: the training of the experiment files."""
        name = "finetune_demo.yaml" if self.pipe.model.name == BUNDLED else "finetune_const.yaml"
        path = Path(resolve(name))
        return load_config(path).training if path.is_file() else TrainingConfig()

    def runs(self) -> list[str]:
        """The names of the folders under `root` that pages have made, newest first."""
        found = [path for path in self.root.glob(f"*/{CONFIG}") if path.is_file()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in found]

    # ---- start and stop ----------------------------------------------------------------------

    def start(
        self,
        word: str,
        phrase: str,
        pictures: Sequence[str | Path],
        kind: str = "object",
        prompts: Sequence[str] = (),
        name_files: bool = False,
        num_vectors: int | None = None,
        **training: Any,
    ) -> Path:
        """Begin to learn a word; its folder.

        Args:
            prompts: of the samples; default: two that fit the kind.
            name_files: whether the pictures' file names say what else is in them.
            training: keys of the configuration's section; what is not given is as usual.

        Raises:
            UserError: something is missing or odd; another one runs; the folder holds a run.
        """
        word, phrase = word.strip(), " ".join(phrase.split())
        if reason := self.busy():
            raise UserError(reason)
        if not word:
            raise UserError("the word is empty; write a new one, as prompts will say it")
        if self.pipe.vocabulary.is_word(word):
            raise UserError(f"the model knows {word!r} already; write a new word: my-{word}")
        if not phrase:
            raise UserError("the phrase is empty; say in a few words what the pictures show")
        if not pictures:
            raise UserError("there are no pictures; drop 5 to 50 of them")
        if kind not in SAMPLES:
            raise UserError(f"what is learned is an object or a style, not {kind!r}")
        folder = self.root / file_name(word)
        if (folder / "checkpoints").is_dir():
            raise UserError(
                f"{folder} holds what was learned for {word!r} before; go on with that, or take "
                "another word"
            )
        model = self.pipe.model
        hyperparameters = {
            "model": {
                "pretrained_model_name_or_path": model.name,
                "revision": model.commit,
            },
            "concepts": {
                "concept_strs": [word],
                "initializer_strs": [phrase],
                "img_dirs": [str((folder / PICTURES).resolve())],
                "learnable_properties": [kind],
                "num_vectors": [num_vectors],
                "append_file_name_to_text": name_files,
            },
            "training": dataclasses.asdict(self.usual()) | training,
            "inference": {
                "inference_prompts": list(prompts) or [t.format(word) for t in SAMPLES[kind]],
                "num_inference_steps": 30,
                "guidance_scale": 4.0,
                "scheduler_name": self.pipe.own_scheduler,
                "seeds": [0, 1],
            },
        }
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        (folder / PICTURES).mkdir(parents=True)
        (folder / CONFIG).write_text(
            f"# python -m detsd finetune {folder / CONFIG} --output-dir {folder}\n"
            + yaml.safe_dump(
                {"name": f"detsd-{file_name(word)}", "hyperparameters": hyperparameters},
                sort_keys=False,
                allow_unicode=True,
            ),
            encoding="utf-8",
        )
        try:
            config = _config(folder)  # its mistakes are told now
            for path in map(Path, pictures):
                _copy(path, folder / PICTURES)
            check_finetune(config, str(folder / CONFIG))
        except (UserError, OSError):
            (folder / CONFIG).unlink()
            shutil.rmtree(folder / PICTURES)
            raise
        self._launch(folder)
        return folder

    def go_on(self, name: str) -> Path:
        """Go on with a run that was stopped; its folder.

        Raises:
            UserError: no such run; another one runs.
        """
        if reason := self.busy():
            raise UserError(reason)
        if name not in self.runs():
            raise UserError(
                f"{self.root} has no run {name!r} that a page began; those are: "
                f"{', '.join(self.runs()) or 'none'}"
            )
        self._launch(self.root / name)
        return self.root / name

    def _launch(self, folder: Path) -> None:
        command = [sys.executable, "-m", "detsd", "finetune", folder / CONFIG]
        torch.cuda.empty_cache()  # what PyTorch keeps of images made here, the process will need
        with (folder / LOG).open("w") as log:
            # A session of its own: Ctrl-C at the page's terminal would reach it twice.
            self._process = subprocess.Popen(
                [*command, "--output-dir", folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.folder, self._stopping, self._taken = folder, False, False

    def stop(self) -> None:
        """Ask the running one to leave a checkpoint and end."""
        if self.running:
            if not self._stopping:  # asked twice, it ends without one
                self._process.send_signal(signal.SIGTERM)
            self._stopping = True

    def wait(self) -> None:
        """Wait for the running one to end."""
        if self._process:
            self._process.wait()

    def take_finished(self) -> Path | None:
        """The folder of the one that has just ended with its last step, once."""
        if self.running or self._taken or self._process is None or self._process.returncode:
            return None
        self._taken = True
        return self.folder

    # ---- how it goes -------------------------------------------------------------------------

    def standing(self, name: str | None = None) -> RunStatus | None:
        """How far the last one, or that of a folder's name, is; None without any.

        Raises:
            UserError: its configuration cannot be read any more.
        """
        folder = self.root / name if name else self.folder
        if folder is None or not (folder / CONFIG).is_file():
            return None
        mine = folder == self.folder
        running = mine and self.running
        config = _config(folder)
        files = RunFolder(folder)
        metrics = {"training": {}, "validation": {}}
        metrics |= {report["group"]: report for report in files.metrics()}
        training, validation = metrics["training"], metrics["validation"]
        latest = files.latest()
        steps = config.training.num_sgd_steps
        step = max(m.get("steps_completed", 0) for m in metrics.values())
        count = len(config.inference.inference_prompts) * len(config.inference.seeds)
        problem = ""
        if mine and not running and self._process.returncode not in (0, 128 + signal.SIGTERM):
            said = [line for line in _lines(folder / LOG) if line.strip()]
            told = [line for line in said if line.startswith("detsd: ")]
            problem = "\n".join(told).removeprefix("detsd: ") or (
                f"it ended unexpectedly: {said[-1] if said else 'without a word'}"
            )
        rate = training.get("samples_per_second", 0.0)
        t = config.training
        per_step = t.train_batch_size * t.gradient_accumulation_steps
        return RunStatus(
            folder=folder,
            word=config.concepts.concept_strs[0],
            running=running,
            complete=bool(latest)
            and (latest == files.checkpoint(steps) or read_metadata(latest).get("settled", False)),
            step=step,
            steps=steps,
            loss=training.get("loss"),
            val_loss=validation.get("val_loss"),
            phrase_loss=validation.get("val_loss_initializer"),
            samples_per_second=rate,
            seconds_left=(steps - step) * per_step / rate if running and rate else None,
            problem=problem,
            sampled=tuple(s for s in files.sampled_steps() if len(files.samples(s)) >= count),
            checkpoint=latest,
        )

    def time_lapse(self, standing: RunStatus, folder: Path) -> Path | None:
        """The time-lapse of the samples so far, drawn into `folder`; None before there are two."""
        finished = standing.folder / "time_lapse.gif"
        if standing.complete and finished.is_file():
            return finished
        frames = []
        every = -(-len(standing.sampled) // MOST_FRAMES) or 1
        for step in standing.sampled[::-every][::-1]:  # the last one among them
            try:
                paths = RunFolder(standing.folder).samples(step)
                frames.append((step, [Image.open(path).convert("RGB") for path in paths]))
            except OSError:  # being written
                continue
        if len(frames) < 2:
            return None
        folder = folder / f"{standing.folder.name}-{frames[-1][0]}-{time.time_ns()}"
        folder.mkdir(parents=True)
        prompts = [job.prompt for job in _jobs(standing.folder)]
        contact_sheets.time_lapse(frames, prompts, folder)
        return folder / "time_lapse.gif"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _copy(picture: Path, folder: Path) -> None:
    """Copy a picture into a folder, under another name where its own is taken.

    Raises:
        UserError: it cannot be read.
    """
    target, k = folder / picture.name, 2
    while target.exists():
        target, k = folder / f"{picture.stem}-{k}{picture.suffix}", k + 1
    try:
        shutil.copyfile(picture, target)
    except OSError as error:
        raise UserError(f"{picture} cannot be read ({error.strerror}); drop it again") from None
