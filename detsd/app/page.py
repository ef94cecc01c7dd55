"""The interactive demo: python -m detsd app

A web page in front of one `DetSDTextualInversionPipeline`. It needs gradio (requirements-app.txt),
talks only to the browser, and does one thing at a time: all visitors share the model, its concepts
and one queue.
"""

import dataclasses
import os
import signal
import tempfile
from pathlib import Path

import gradio as gr

from detsd.app.api import endpoints
from detsd.app.backend import Backend
from detsd.app.concepts_tab import concepts_tab
from detsd.app.generate_tab import generate_tab
from detsd.app.grid_tab import grid_tab
from detsd.app.guard import Address, no_proxy
from detsd.app.learn_tab import LearnTab
from detsd.app.parts import MAX_UPLOAD, PRIVATE, about
from detsd.app.training_runs import TrainingRuns
from detsd.config import ModelConfig
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils.errors import UserError

# gradio would otherwise send telemetry, check for updates, and keep every run's prompts.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}

MAX_WAITING = 20  # requests

CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def page(backend: Backend, runs: TrainingRuns) -> gr.Blocks:
    """Build the page with its handlers."""
    with gr.Blocks(
        title="detsd", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
    ) as blocks:
        endpoints(backend, runs)  # first, or the handlers below would take their names
        gr.Markdown("# detsd\nA new word for Stable Diffusion, learned from a few pictures.")
        top = gr.HTML(about(backend), elem_id="about")
        with gr.Tab("Generate"):
            form, examples = generate_tab(backend)
        with gr.Tab("Grid"):
            grid_tab(backend, form)
        with gr.Tab("Learn"):
            learn = gr.Column()
        with gr.Tab("Concepts"):
            head = concepts_tab(backend, top, examples)
        with learn:
            tab = LearnTab(backend, runs, head)

        blocks.load(tab.look, None, tab.outputs, queue=False, **PRIVATE)
        blocks.load(lambda: head.now(backend), None, head.all, queue=False, **PRIVATE)
    return blocks.queue(max_size=MAX_WAITING)


def launch(blocks: gr.Blocks, address: Address, folder: Path) -> str:
    """Serve the page in its own thread; return its URL, with the password if one was generated.

    Args:
        folder: the folder whose files are served, too.
    """
    host, port, auth = address.bare_host, address.port, address.credentials()
    fonts = ["system-ui", "sans-serif"]  # names only: gradio would fetch its own fonts online
    theme = gr.themes.Default(
        primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_500")
    try:
        with no_proxy():
            _, url, _ = blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port, share=False, quiet=True, ssr_mode=False,
                prevent_thread_lock=True, theme=theme, css=CSS, footer_links=[],
                allowed_paths=[str(folder)], max_file_size=MAX_UPLOAD, auth=auth,
                enable_monitoring=False, pwa=False, mcp_server=False,
                app_kwargs={"middleware": address.middleware()},
            )  # fmt: skip
    except OSError:
        raise UserError(
            f"--port {port or '(7860 to 7959)'} is taken on {host}; give another one"
        ) from None
    return f"{url} as {auth[0]} with the password {auth[1]}" if auth and not address.auth else url


def serve(
    model: ModelConfig,
    concepts: list[str],
    uuids: list[str],
    address: Address,
    image_dirs: dict[str, str] | None = None,
) -> None:  # pragma: no cover
    """Load the model and its concepts, and serve the page until interrupted.

    Args:
        image_dirs: folders of training images, for concepts whose files do not name them.
    """
    pipe = DetSDTextualInversionPipeline.from_pretrained(
        **dataclasses.asdict(model), concepts=concepts, uuids=uuids
    )
    with tempfile.TemporaryDirectory(prefix="detsd-app-") as folder:
        runs = TrainingRuns(pipe, Path("outputs"))
        backend = Backend(pipe, Path(folder), image_dirs, runs.busy, address.is_local)
        blocks = page(backend, runs)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the second
                signal.signal(number, _exit)
        url = launch(blocks, address, Path(folder))
        print(f"the demo is at {url} (Ctrl-C stops it)", flush=True)
        try:
            blocks.block_thread()
        finally:
            backend.stop()
            runs.stop()
            runs.wait()


def _exit(number: int, frame: object) -> None:
    """End as Ctrl-C does; unhandled, a signal leaves a training and temporary files behind."""
    raise SystemExit(128 + number)
