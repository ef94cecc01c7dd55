"""The Concepts tab: load, reload, unload and inspect concepts."""

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from detsd.app.backend import Backend
from detsd.app.parts import ALONE, PRIVATE, Head, lines, show_errors, uploaded
from detsd.concepts.usage import PROMPTS, layout_for, prompts
from detsd.concepts.writing import encode, store
from detsd.utils.errors import UserError


def given(name: str | None) -> str:
    """Return the name of the chosen concept; raise an error if none is chosen."""
    if not name:
        raise UserError("no concept is chosen; choose one of the loaded concepts")
    return name


def export_for(backend: Backend, name: str, tool: str) -> tuple[list[Path], str]:
    """Write a concept for a tool; return the files, and what to write in prompts there."""
    concept = next((c for c in backend.pipe.vocabulary.concepts() if c.name == name), None)
    if concept is None:
        raise UserError(f"{name} is no longer loaded; choose another concept")
    layout = layout_for(concept, tool)
    backend.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=backend.folder))
    encoded = encode([concept], layout)
    store(encoded, folder)
    text = prompts(concept, layout)[tool]
    return [folder / file for file in encoded], f"In {tool}, write in a prompt: {text}"


def concepts_tab(backend: Backend, about: Any, examples: Any) -> Head:
    """Build the tab; return all components that show concepts."""
    with gr.Row():
        with gr.Column():
            names = backend.pipe.concepts
            chosen = gr.Radio(
                names, value=names[-1] if names else None, label="Loaded concepts",
                elem_id="concepts",
            )  # fmt: skip
            known = gr.HTML(elem_id="facts")
            with gr.Row():
                reload = gr.Button("Reload", elem_id="reload")
                unload = gr.Button("Unload", elem_id="unload")
            changed = gr.HTML(elem_id="changed", elem_classes="status")
            images = gr.HTML(elem_id="pictures", elem_classes="thumbnails")
            with gr.Row():
                tool = gr.Dropdown(
                    list(PROMPTS), value="A1111, Forge, SD.Next", label="For another tool",
                    elem_id="tool",
                )  # fmt: skip
                export = gr.Button("Export", elem_id="export")
            exported = gr.HTML(elem_id="exported", elem_classes="status")
            files = gr.File(
                show_label=False, file_count="multiple", interactive=False, visible=False,
                elem_id="exported_files",
            )  # fmt: skip
        with gr.Column():
            gr.Markdown(
                "Load a concept that was learned on this base model, by `python -m detsd finetune` "
                "or by another tool. `python -m detsd generate --from IMAGE` can find a concept "
                "again that was loaded by its path, but not an uploaded file."
            )
            source = gr.Textbox(
                label="Concept file, checkpoint, run folder, or checkpoint uuid",
                elem_id="source", placeholder="outputs/my_concept", visible=backend.reads_paths,
            )  # fmt: skip
            gr.HTML("or upload a concept file", visible=backend.reads_paths)
            file = gr.File(show_label=False, type="filepath", height=140, elem_id="file")
            load = gr.Button("Load", variant="primary", elem_id="load")
            loaded = gr.HTML(elem_id="loaded", elem_classes="status")
    head = Head(about, examples, chosen, known, images)

    @show_errors()
    def add(text: str, upload: str | None) -> dict:
        words = ", ".join(backend.load(text, upload and uploaded(upload)))
        message = lines(f"Loaded {words}. Write the word in a prompt.")
        return {loaded: message, source: "", file: None} | head.now(backend)

    @show_errors()
    def forget(name: str | None) -> dict:
        backend.unload(given(name))
        return {changed: lines(f"Unloaded {name}.")} | head.now(backend, name)

    @show_errors()
    def read_again(name: str | None) -> dict:
        backend.reload(given(name))
        message = lines(f"Read {name} again from {backend.pipe.sources[name]}.")
        return {changed: message} | head.now(backend, name)

    @show_errors()
    def write(name: str | None, tool: str) -> dict:
        paths, usage = export_for(backend, given(name), tool)
        return {files: gr.File([str(p) for p in paths], visible=True), exported: lines(usage)}

    def look(name: str | None) -> dict:
        return head.now(backend, name or "")

    load.click(add, [source, file], [loaded, source, file, *head.all], **ALONE, **PRIVATE)
    chosen.input(look, chosen, head.all, queue=False, **PRIVATE)
    for pressed in (
        export.click(write, [chosen, tool], [files, exported], **ALONE, **PRIVATE),
        unload.click(forget, chosen, [changed, *head.all], **ALONE, **PRIVATE),
        reload.click(read_again, chosen, [changed, *head.all], **ALONE, **PRIVATE),
    ):  # another visitor may have unloaded it
        pressed.failure(look, chosen, head.all, queue=False, **PRIVATE)
    return head
