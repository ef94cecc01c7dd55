"""The Concepts tab: loading, renaming and showing concepts."""

from __future__ import annotations

from typing import Any

import gradio as gr

from detsd.app.backend import Backend
from detsd.app.parts import ALONE, QUIET, Head, facts_of, status, told

# ---- concepts ------------------------------------------------------------------------------------


def concepts_tab(backend: Backend, about: Any, examples: Any) -> Head:
    """What is loaded, and loading; all that shows it."""
    with gr.Row():
        with gr.Column():
            names = backend.pipe.concepts
            chosen = gr.Radio(
                names, value=names[-1] if names else None, label="Loaded concepts",
                elem_id="concepts",
            )  # fmt: skip
            facts = gr.Markdown(elem_id="facts")
            with gr.Row():
                reload = gr.Button("Reload", elem_id="reload")
                unload = gr.Button("Unload", elem_id="unload")
            changed = gr.HTML(elem_id="changed", elem_classes="status")
            pictures = gr.HTML(elem_id="pictures", elem_classes="thumbnails")
        with gr.Column():
            gr.Markdown(
                "Load a concept that was learned on this base model, by `python -m detsd finetune` "
                "or by another tool. What is named by its path can be found again by "
                "`python -m detsd generate --from IMAGE`; an uploaded file cannot."
            )
            source = gr.Textbox(
                label="Concept file, checkpoint or run folder, or checkpoint uuid",
                elem_id="source", placeholder="outputs/my_concept",
            )  # fmt: skip
            gr.Markdown("or upload a concept file")
            file = gr.File(show_label=False, type="filepath", height=140, elem_id="file")
            load = gr.Button("Load", variant="primary", elem_id="load")
            loaded = gr.HTML(elem_id="loaded", elem_classes="status")
    head = Head(about, examples, chosen, facts, pictures)

    @told(loaded)
    def add(text: str, upload: str | None) -> dict:
        words = ", ".join(backend.load(text, upload))
        said = status(f"Loaded {words}. Write the word in a prompt.")
        return {loaded: said, source: "", file: None} | head.now(backend)

    @told(changed)
    def forget(name: str | None) -> dict:
        backend.unload(name or "")
        return {changed: status(f"Unloaded {name}.")} | head.now(backend)

    @told(changed)
    def read_again(name: str | None) -> dict:
        backend.reload(name or "")
        said = status(f"Read {name} again from {backend.pipe.sources[name]}.")
        return {changed: said} | head.now(backend, name)

    chosen.input(
        lambda name: facts_of(backend, name), chosen, [facts, pictures], queue=False, **QUIET
    )
    load.click(add, [source, file], [loaded, source, file, *head.all], **ALONE, **QUIET)
    unload.click(forget, chosen, [changed, *head.all], **ALONE, **QUIET)
    reload.click(read_again, chosen, [changed, *head.all], **ALONE, **QUIET)
    return head
