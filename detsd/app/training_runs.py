"""Fine-tunings that the page starts: `python -m detsd finetune` in a separate process.

    runs.start("my-cat", "grey cat", pictures)

Each has a folder under `outputs/`, named after its word. It holds `finetune.yaml`, copies of the
pictures, and the usual files of a fine-tuning. Both the page and the command line can resume it.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detsd.app.run_status import CONFIG, LOG, PICTURES, RunStatus, read_status
from detsd.config import TrainingConfig, load_config
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.train.preflight import check_finetune
from detsd.utils.errors import UserError
from detsd.utils.paths import AUTO, bundled_with, file_name, resolve
from detsd.utils.plurals import counted

MAX_PICTURES = 200  # per run

# The prompts of the samples, by the kind of concept.
SAMPLES = {
    "object": ("a photo of a {}", "a watercolor painting of a {} on a night sky"),
    "style": ("a cat in the style of {}", "a house on a night sky in the style of {}"),
}


class TrainingRuns:
    """The fine-tunings of a page, one of which can run at a time.

    Args:
        pipe: the pipeline whose model they use.
        root: the parent of their folders.
    """

    def __init__(self, pipe: DetSDTextualInversionPipeline, root: Path):
        self.pipe, self.root = pipe, root
        self.folder: Path | None = None  # of the one started last
        self._process: subprocess.Popen | None = None
        self._stopping = self._taken = False

    @property
    def running(self) -> bool:
        """True while one runs."""
        return self._process is not None and self._process.poll() is None

    def busy(self) -> str:
        """Return the reason why nothing else can be made now; "" if there is none."""
        return f"{self.folder} is being trained; wait for it, or stop it" if self.running else ""

    def default_training(self) -> TrainingConfig:
        """Return the defaults of the form: the training section of the experiment files."""
        repository = bundled_with(self.pipe.model.name)
        others = Path(resolve("finetune_const.yaml"))
        path = repository / "finetune_demo.yaml" if repository else others
        return load_config(path).training if path.is_file() else TrainingConfig()

    def names(self) -> list[str]:
        """Return the names of the folders under `root` that a page has made, newest first."""
        found = [path for path in self.root.glob(f"*/{CONFIG}") if path.is_file()]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.name for path in found]

    def _folder(self, name: str) -> Path:
        """Return the folder of a run, given its name; refuse anything else, such as a path."""
        if name not in (names := self.names()):
            raise UserError(
                f"{self.root} has no run {name!r} that a page started; choose one of these: "
                f"{', '.join(names) or 'none'}"
            )
        return self.root / name

    # ---- start and stop ----------------------------------------------------------------------

    def start(
        self,
        word: str,
        phrase: str,
        pictures: Sequence[str | Path],
        kind: str = "object",
        prompts: Sequence[str] = (),
        name_files: bool = False,
        captions: Sequence[str] = (),
        buckets: bool = False,
        **training: Any,
    ) -> Path:
        """Start to train a word; return the run's folder.

        Args:
            phrase: the initializer; "": find one.
            prompts: the samples' prompts; default: two that suit the kind.
            name_files: whether the pictures' file names describe what else they show.
            captions: one for each picture, in order; "" for none.
            buckets: whether pictures keep their shapes, as nearly as the buckets allow.
            training: keys of the configuration's section; the others have their defaults.
        """
        word, phrase = word.strip(), " ".join(phrase.split()) or AUTO
        self._check(word, pictures, kind)
        captions = [" ".join(caption.split()) for caption in captions]
        while len(captions) > len(pictures) and not captions[-1]:
            captions.pop()  # from an empty last line
        if any(captions) and len(captions) != len(pictures):
            raise UserError(
                f"{counted(len(captions), 'caption')} for {counted(len(pictures), 'picture')}; "
                "write one per line in the order of the pictures, and an empty line for a picture "
                "without one"
            )
        folder = self.root / file_name(word)
        if (folder / "checkpoints").is_dir():
            raise UserError(
                f"{folder} holds an earlier training of {word!r}; continue that one, or choose "
                "another word"
            )
        if (folder / CONFIG).is_file():
            (other,) = load_config(folder / CONFIG).concepts.concept_strs
            if other != word:
                raise UserError(f"{folder} holds the pictures of {other!r}; choose another word")
        concepts = {
            "concept_strs": [word],
            "initializer_strs": [phrase],
            "num_vectors": [AUTO],
            "img_dirs": [str((folder / PICTURES).resolve())],
            "learnable_properties": [kind],
            "append_file_name_to_text": name_files,
            "use_caption_files": any(captions),
            **({"img_aspect": "buckets"} if buckets else {}),
        }
        prompts = list(prompts) or [text.format(word) for text in SAMPLES[kind]]
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        (folder / PICTURES).mkdir(parents=True)
        self._write_config(folder, concepts, dataclasses.asdict(self.default_training()) | training,
                           prompts)  # fmt: skip
        try:
            config = load_config(folder / CONFIG)  # reports mistakes now
            copies = [_copy(path, folder / PICTURES) for path in map(Path, pictures)]
            for copy, caption in zip(copies, captions, strict=False):
                if caption:
                    copy.with_name(f"{copy.name}.txt").write_text(caption, encoding="utf-8")
            check_finetune(config, str(folder / CONFIG))
        except (UserError, OSError):
            (folder / CONFIG).unlink()
            shutil.rmtree(folder / PICTURES)
            raise
        self._launch(folder)
        return folder

    def _check(self, word: str, pictures: Sequence[Any], kind: str) -> None:
        """Refuse what cannot be learned, before anything is written."""
        if reason := self.busy():
            raise UserError(reason)
        if not word:
            raise UserError("the word is empty; write a new one, as you will use it in prompts")
        if self.pipe.vocabulary.is_word(word):
            raise UserError(f"the model already knows {word!r}; write a new word such as my-{word}")
        if not pictures:
            raise UserError("there are no pictures; drop 5 to 50 of them")
        if len(pictures) > MAX_PICTURES:
            raise UserError(
                f"there are {len(pictures)} pictures, but the page takes at most {MAX_PICTURES}; "
                "python -m detsd finetune takes as many as you like"
            )
        if kind not in SAMPLES:
            raise UserError(f"kind is {kind!r} but must be object or style")

    def _write_config(
        self, folder: Path, concepts: dict[str, Any], training: dict[str, Any], prompts: list[str]
    ) -> None:
        """Write the run's configuration."""
        inference = {"inference_prompts": prompts, "num_inference_steps": 30, "guidance_scale": 4.0,
                     "scheduler_name": self.pipe.own_scheduler, "seeds": [0, 1]}  # fmt: skip
        hyperparameters = {
            "model": self.pipe.model.settings,
            "concepts": concepts, "training": training, "inference": inference,
        }  # fmt: skip
        experiment = {"name": f"detsd-{folder.name}", "hyperparameters": hyperparameters}
        # JSON is also YAML, with all strings quoted: some YAML readers take 1e5 for a number.
        text = json.dumps(experiment, ensure_ascii=False, indent=1) + "\n"
        command = f"# python -m detsd finetune {folder / CONFIG} --output-dir {folder}\n"
        (folder / CONFIG).write_text(command + text, encoding="utf-8")

    def resume(self, name: str) -> Path:
        """Resume a run that was stopped; return its folder."""
        if reason := self.busy():
            raise UserError(reason)
        self._launch(folder := self._folder(name))
        return folder

    def _launch(self, folder: Path) -> None:
        command = [sys.executable, "-m", "detsd", "finetune", folder / CONFIG]
        torch.cuda.empty_cache()  # the process needs the memory that PyTorch keeps
        with (folder / LOG).open("w") as log:
            # In its own session, or Ctrl-C at the page's terminal would reach it twice.
            self._process = subprocess.Popen(
                [*command, "--output-dir", folder], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.folder, self._stopping, self._taken = folder, False, False

    def stop(self) -> None:
        """Ask the active run to save a checkpoint and end."""
        if self.running:
            if not self._stopping:  # a second signal would end it without one
                self._process.send_signal(signal.SIGTERM)
            self._stopping = True

    def wait(self) -> None:
        """Wait for the active run to end."""
        if self._process:
            self._process.wait()

    def take_finished(self) -> Path | None:
        """Return the folder of the run that has just completed, once."""
        if self.running or self._taken or self._process is None or self._process.returncode:
            return None
        self._taken = True
        return self.folder

    def status(self, name: str | None = None) -> RunStatus | None:
        """Return the status of the latest run, or of the one named; None if there is none."""
        folder = self._folder(name) if name else self.folder
        if folder is None or not (folder / CONFIG).is_file():
            return None
        mine = folder == self.folder
        running = mine and self.running
        stopped = (0, 128 + signal.SIGTERM)
        failed = mine and not running and self._process.returncode not in stopped
        return read_status(folder, running, failed)


def _copy(picture: Path, folder: Path) -> Path:
    """Copy a picture into a folder, renamed if its name is taken; return the copy."""
    target, k = folder / picture.name, 2
    while target.exists():
        target, k = folder / f"{picture.stem}-{k}{picture.suffix}", k + 1
    try:
        shutil.copyfile(picture, target)
    except OSError as error:
        raise UserError(f"{picture} cannot be read ({error.strerror}); drop it again") from None
    return target
