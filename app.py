"""The project in a browser: recognise a clip, follow a long recording, read the model's card.

Recordings are only read. Gradio's copies of uploads are removed after ten minutes.

Run ``python app.py [--model DIR] [--port 7860] [--share]``, or call :func:`build` and ``launch`` in
a notebook. On Hugging Face Spaces, this file is the app.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
from matplotlib.figure import Figure

from helpers import artifacts, metrics, plots, predict
from helpers.artifacts import SavedModel

UNSURE_BELOW = 0.4
LARGEST_UPLOAD = "100mb"
KEPT_S = 600  # how long copies of uploads are kept
READS = {
    "functionals": "statistics of low-level descriptors over the clip",
    "segments": "statistics of low-level descriptors over parts of the clip",
    "sequence": "sequences of low-level descriptors",
    "image": "mel-spectrograms",
}
INTRODUCTION = """# Emotion in speech
Which emotion does a voice express? The model learned from acted speech: do not use it to judge
people."""


def recognise(
    model: SavedModel,
    clip: str | None,
    enrolment: list[str] | None = None,
    only: list[str] | None = None,
    unsure_below: float = UNSURE_BELOW,
) -> tuple[dict[str, float], str]:
    """Answer one clip.

    Parameters
    ----------
    model
        From ``artifacts.load``.
    clip
        A file; None where none was given.
    enrolment
        Other recordings of the same speaker.
    only
        Emotions to choose among; by default all.
    unsure_below
        Probability below which the answer is "unsure".

    Returns
    -------
    probabilities, text
        Emotion → probability, without those that were not to be chosen; and what to know about it
        (markdown). Warnings are also shown as such.

    Raises
    ------
    gr.Error
        If a recording can't be used; the text says why.
    """
    known, only = tuple(enrolment or ()), tuple(only or ())
    found = _asked(predict.predict, clip, model, None, known, only, unsure_below)
    lines = [f"Answered by the **{found.variant}** variant of the model."]
    if found.emotion == predict.UNSURE:
        lines.insert(0, f"**Unsure**: no emotion has a probability of at least {unsure_below:.0%}.")
    if known and found.variant == "inductive":
        lines.append(
            "It has no speaker-normalised variant: the speaker's other clips were not used."
        )
    for warning in found.warnings:
        lines.append(f"Warning: {warning}.")
        gr.Warning(lines[-1])
    kept = only or model.emotions
    shares = {name: p for name, p in found.probabilities.items() if name in kept}
    return shares, "\n\n".join(lines)


def follow(
    model: SavedModel,
    recording: str | None,
    enrolment: list[str] | None = None,
    only: list[str] | None = None,
) -> tuple[Figure | None, dict[str, float], dict[str, float], str]:
    """Answer a long recording.

    Parameters
    ----------
    model, enrolment, only
        As for :func:`recognise`.
    recording
        A file of up to ``predict.LONGEST_S``; None where none was given.

    Returns
    -------
    timeline, emotions, satisfaction, text
        A figure; shares of the emotions, and of groups of them that tell whether a caller is
        satisfied, over the whole recording; and what to know about them (markdown).

    Raises
    ------
    gr.Error
        If a recording can't be used; the text says why.
    """
    known, only = tuple(enrolment or ()), tuple(only or ())
    windows = _asked(predict.timeline, recording, model, enrolment=known, only=only)
    if windows.empty:
        return None, {}, {}, "Nobody seems to speak in this recording."
    figure = Figure(figsize=(9, 3), layout="constrained")
    axis = figure.subplots()
    plots.timeline(windows, axis)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    groups = {}
    if all(set(group) & set(only or model.emotions) for group in predict.SATISFACTION.values()):
        groups = predict.verdict(windows, groups=predict.SATISFACTION)
    text = (
        f"{len(windows)} windows of {predict.WINDOW_S:.0f} s in which somebody speaks. "
        "All speakers count as one, and later windows count more."
    )
    return figure, predict.verdict(windows), groups, text


def describe(model: SavedModel) -> str:
    """Return the card of a model as text (markdown): data, inputs and cross-validated results."""
    card, lines = model.card, []
    if model.members:
        lines.append(f"A weighted average of {len(model.members)} models.")
        for name, member in model.members.items():
            weights = [
                f"{own[name]:.2f} ({v})" for v, own in card["weights"].items() if name in own
            ]
            lines.append(
                f"- **{name}** reads {_reads(member.reads[0])}; weight {', '.join(weights)}"
            )
    else:
        lines.append(f"It reads {_reads(model.reads[0])}.")
    lines += [
        "",
        f"- **Training data** {card.get('corpus')}, label set `{card.get('labels')}`",
        f"- **Licence** {card.get('licence')}",
        f"- **Emotions** {', '.join(model.emotions)}",
        "",
        "Cross-validated results. UAR is the mean recall of the emotions, with a 95 % interval "
        f"over speakers; chance is {1 / len(model.emotions):.1%}.",
        "",
        "| variant | UAR | accuracy | utterances |",
        "|---|---|---|---|",
    ]
    for row in card.get("results", []):
        row = row | {"uar": metrics.format_uar(row), "wa": f"{100 * row['wa']:.1f} %"}
        lines.append("| {variant} | {uar} | {wa} | {n} |".format(**row))
    return "\n".join([f"### {card.get('model')}", *lines])


def build(model: SavedModel) -> gr.Blocks:
    """Build the pages for one model."""
    sound = {"type": "filepath", "editable": False, "buttons": []}
    with gr.Blocks(title="Emotion in speech", delete_cache=(KEPT_S, KEPT_S)) as pages:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("A clip"), gr.Row():
            with gr.Column():
                clip = gr.Audio(label="Up to a minute", elem_id="clip", **sound)
                enrolment, only = _settings(model)
                unsure = gr.Slider(0, 1, UNSURE_BELOW, step=0.05, label='"Unsure" below')
                button = gr.Button("Recognise", variant="primary", elem_id="recognise")
            with gr.Column():
                answer = gr.Label(label="Probabilities", elem_id="answer")
                notes = gr.Markdown(elem_id="notes")
        inputs = [clip, enrolment, only, unsure]
        button.click(functools.partial(recognise, model), inputs, [answer, notes])
        with gr.Tab("A long recording"):
            with gr.Row():
                recording = gr.Audio(label="A call or an interview", elem_id="recording", **sound)
                with gr.Column():
                    enrolment, only = _settings(model)
                    button = gr.Button("Follow", variant="primary", elem_id="follow")
            timeline, notes = gr.Plot(show_label=False, elem_id="timeline"), gr.Markdown()
            with gr.Row():
                emotions, groups = gr.Label(label="Emotions"), gr.Label(label="Satisfaction")
        inputs, outputs = [recording, enrolment, only], [timeline, emotions, groups, notes]
        button.click(functools.partial(follow, model), inputs, outputs)
        with gr.Tab("The model"):
            gr.Markdown(describe(model), elem_id="card")
    return pages


def main(arguments: list[str] | None = None) -> int:
    """Recognise emotions in a browser; returns 2 if the app can't start."""
    parser = argparse.ArgumentParser("python app.py", description=main.__doc__)
    parser.add_argument("--model", default="", help="folder of a model, or its name in data/models")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="also through Gradio's public tunnel")
    options = parser.parse_args(arguments)
    # fonts of the machine, so that the page asks no other server
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    given = {"server_port": options.port, "share": options.share, "theme": theme}
    try:
        pages = build(artifacts.load(predict.find_model(options.model)))
        pages.launch(max_file_size=LARGEST_UPLOAD, footer_links=[], run_history=False, **given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _asked(ask: Callable, recording: str | None, *given, **options):
    """Call a function of ``predict``; what it refuses is shown in the page."""
    if recording is None:
        raise gr.Error("There is no recording: speak, or choose a file.")
    try:
        return ask(recording, *given, **options)
    except (ValueError, OSError, MemoryError) as error:
        raise gr.Error(str(error) or type(error).__name__, print_exception=False) from None


def _settings(model: SavedModel) -> tuple[gr.File, gr.CheckboxGroup]:
    """Add what both pages of recordings ask for."""
    with gr.Accordion("Other clips of the same speaker, in different emotions", open=False):
        enrolment = gr.File(file_count="multiple", label="Recordings", elem_classes="enrolment")
    with gr.Accordion("Choose among some emotions", open=False):
        only = gr.CheckboxGroup(model.emotions, label="None ticked: all", elem_classes="only")
    return enrolment, only


def _reads(reads: artifacts.Input) -> str:
    return READS.get(reads.kind, reads.kind) + " (channel-normalised)" * reads.channel_normalised


if __name__ == "__main__":
    sys.exit(main())
