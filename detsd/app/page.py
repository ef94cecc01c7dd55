"""The interactive demo: python -m detsd app

A web page in front of one `DetSDTextualInversionPipeline`. It needs gradio (requirements-app.txt),
talks to nobody but the browser, and does one thing at a time: everybody who has the page open
shares the model, its concepts and one queue.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import gradio as gr

from detsd.app.api import endpoints
from detsd.app.backend import Backend
from detsd.app.concepts_tab import concepts_tab
from detsd.app.generate_tab import generate_tab
from detsd.app.grid_tab import grid_tab
from detsd.app.learn_tab import learn_tab
from detsd.app.parts import QUIET, about
from detsd.app.training_runs import TrainingRuns
from detsd.sampling.pipeline import DetSDTextualInversionPipeline
from detsd.utils.errors import UserError

# Before gradio is imported: it would report home and look for a newer version of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

CSS = """
footer { display: none !important; }
.gallery .grid-wrap { height: auto !important; max-height: none !important; }
.gallery .preview { position: fixed !important; inset: 0; z-index: 1000; height: 100dvh !important;
  background: var(--background-fill-primary) !important; }
.status:has(.prose:empty), .thumbnails:has(.prose:empty) { display: none !important; }
.status p { margin: 0; }
.status .error { color: var(--error-text-color, #b91c1c); }
.status .note { color: var(--block-info-text-color); }
.bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); }
.bar div { height: 8px; border-radius: 4px; background: var(--primary-500); }
.thumbnails img { display: inline-block; height: 72px; margin: 0 4px 4px 0; border-radius: 6px; }
#draws p { margin: 0; font-size: var(--text-sm); color: var(--block-info-text-color); }
"""


def page(backend: Backend, learning: TrainingRuns) -> gr.Blocks:
    """The page, complete with its handlers."""
    with gr.Blocks(
        title="detsd", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
    ) as blocks:
        endpoints(backend, learning)  # first: the handlers below would take their names
        gr.Markdown("# detsd\nA new word for Stable Diffusion, learned from a few pictures.")
        top = gr.Markdown(about(backend), elem_id="about")
        with gr.Tab("Generate"):
            form, examples = generate_tab(backend)
        with gr.Tab("Grid"):
            grid_tab(backend, form)
        with gr.Tab("Learn"):
            learn = gr.Column()
        with gr.Tab("Concepts"):
            head = concepts_tab(backend, top, examples)
        with learn:
            now, outputs = learn_tab(backend, learning, head)

        def arrive() -> dict:
            return now() | head.now(backend)

        def leave(request: gr.Request) -> None:
            backend.stop(request.session_hash)
            backend.asked.pop(request.session_hash, None)

        blocks.load(arrive, None, [*outputs, *head.all], queue=False, **QUIET)
        blocks.unload(leave)
    return blocks.queue(max_size=20)


def serve(
    model: str,
    concepts: list[str],
    uuids: list[str],
    host: str,
    port: int | None,
    pictures: dict[str, str] | None = None,
) -> None:  # pragma: no cover
    """Load the model and its concepts, open the page, and stay until interrupted.

    Args:
        pictures: folders of training pictures of concepts whose files do not tell them.

    Raises:
        UserError: a model or concept that cannot be loaded, an address not to be had.
    """
    pipe = DetSDTextualInversionPipeline.from_pretrained(model, concepts=concepts, uuids=uuids)
    fonts = ["system-ui", "sans-serif"]  # names only: gradio would fetch its own from the network
    theme = gr.themes.Default(
        primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_500")
    with tempfile.TemporaryDirectory(prefix="detsd-app-") as folder:
        backend = Backend(pipe, Path(folder), pictures)
        learning = TrainingRuns(pipe, Path("outputs"))
        backend.busy = learning.busy
        blocks = page(backend, learning)
        try:
            _, url, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, ssr_mode=False,
                prevent_thread_lock=True, theme=theme, css=CSS, footer_links=[],
                allowed_paths=[folder],
            )  # fmt: skip
        except OSError:  # gradio does not tell the two apart
            raise UserError(
                f"--port {port or '(7860 to 7959)'} is taken on {host}, or --host {host} is no "
                "address of this machine; give another one"
            ) from None
        print(f"the demo is at {url} (Ctrl-C ends it)", flush=True)
        try:
            blocks.block_thread()
        finally:
            learning.stop()
            learning.wait()
