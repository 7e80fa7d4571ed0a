"""The project in a browser: speak, or choose a recording, and see what a model answers, why to doubt it and where it looked.

Recordings of visitors are decoded, answered and forgotten: Gradio's folder for them is a private one, each file in it is
removed when it has been read, and the folder when the program ends. Nothing is asked of another machine, nothing is shared.

Run ``python -m helpers.app [--model DIR] [--host 127.0.0.1] [--port 7860]``; in a notebook, call :func:`launch`.
"""

import argparse
import base64
import functools
import html
import io
import os
import signal as signals
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from helpers import (
    audio,
    corpora,
    explain,
    features,
    metrics,
    paths,
    plots,
    predict,
    protocol,
    spectrograms,
)
from helpers.artifacts import Artifact, Average, NetworkPart
from helpers.tables import read_table

UNSURE_BELOW = 0.5  # a well calibrated model is more often wrong than right below it
LARGEST_UPLOAD = 100 * 2**20  # bytes
MOST_ENROLLED = 20  # clips of the same voice; more change little (notebook 19)
CAM_LAYERS = {
    "MelCNN": -1,
    "MelResNet": -2,
}  # the last block whose maps still have rows to tell apart
INPUTS = {
    "functionals": "statistics of the whole clip: pitch, loudness, spectrum, and how they move",
    "segments": "the same statistics of a few parts of the clip, one after the other",
    "sequence": "how pitch, loudness and spectrum go on in time",
    "image": "a mel-spectrogram, as a picture",
}
RAN = "runs the notebooks that fetch the corpus and list its clips"

Clip = str | Path | tuple[int, np.ndarray]  # a file, or (sampling rate in Hz, samples)


@dataclass(frozen=True)
class Answer:
    """Everything that the page shows of a clip, or of a long recording.

    Attributes
    ----------
    error
        What was wrong with the input, in words; nothing else is there then.
    prediction
        Of a clip.
    windows, verdicts
        Of a long recording: its timeline; name → shares, of the emotions and, where the model knows such, of satisfaction.
    words, picture
        HTML: the answer with a bar for each emotion, and the figures.
    signal
        The clip, so that it can be answered again with other settings although its file is gone.
    """

    error: str = ""
    prediction: predict.Prediction | None = None
    windows: pd.DataFrame | None = None
    verdicts: dict[str, dict[str, float]] = field(default_factory=dict)
    words: str = ""
    picture: str = ""
    signal: np.ndarray | None = None


def available() -> dict[str, Path]:
    """Return the models at hand, name → folder: those in ``data/models``, then those of own runs under ``SER_WORK``."""
    shelf, work = paths.PROJECT / "data/models", paths.work()
    found = {card.parent.name: card.parent for card in sorted(shelf.glob("*/card.json"))}
    own = {
        " / ".join(card.relative_to(work).parts[i] for i in (0, 1, 3)): card.parent
        for card in sorted(work.glob("*/*/models/*/card.json"))
    }
    return found | own


def about(model: str | Path | Artifact | Average) -> str:
    """Say in words (markdown) what a model is, what it learned from, and what it achieved in cross-validation.

    Raises
    ------
    ValueError, OSError
        If it can't be loaded; the text says why.
    """
    model = predict.opened(model)
    card = model.card
    if isinstance(model, Average):
        what = (
            f"An average of {len(model.members)} models ({', '.join(model.members)}): their probabilities are multiplied, "
            "each with a weight."
        )
    else:
        kinds = {
            "network": "A neural network",
            "classical": "A classical model (scikit-learn)",
            "linear": "A linear model",
            "trees": "Many decision trees",
        }
        part = card["parts"]["inductive"]
        built = f" ({part['build']})" if "build" in part else ""
        what = f"{kinds.get(part['kind'], part['kind'])}{built}. It reads {INPUTS.get(model.input.kind, model.input.kind)}."
    variants = {
        "inductive": "*inductive* (it goes by the clip alone)",
        "speaker-normalised": "*speaker-normalised* (it compares with other recordings of the same voice)",
    }
    lines = [
        f"### {card.get('model', 'A model')}",
        what,
        f"- **Learned from** {card.get('corpus', 'an unnamed corpus')}, labels `{card.get('policy', '–')}`",
        f"- **Licence** {card.get('licence', 'not said')}",
        f"- **Tells apart** {', '.join(model.emotions)}",
        f"- **Answers as** {', '.join(variants.get(name, name) for name in model.variants)}",
    ]
    results = card.get("protocol") or []
    known = (
        f"UAR is the mean over emotions of the share that was recognised; chance is {1 / len(model.emotions):.1%}."
        if results
        else "Its card holds no results, so nothing is known of how good it is."
    )
    lines += ["", "#### What it achieved in cross-validation", known]
    for result in results:
        try:
            head, *rest = protocol.text(result).split("\n")
            lines += [
                "",
                head,
                "",
                f"<details><summary>How this was found</summary>\n\n{'<br>'.join(rest)}\n\n</details>",
            ]
        except (KeyError, TypeError) as error:
            lines += ["", f"A result of its card can't be read ({type(error).__name__}: {error})."]
    return "\n".join(lines)


def answer(
    clip: Clip | None,
    model: str | Path | Artifact | Average,
    only: tuple[str, ...] = (),
    unsure_below: float = UNSURE_BELOW,
    enrolment: tuple[Clip, ...] = (),
    look: bool = True,
) -> Answer:
    """Answer one clip: all that the page shows of it. Never raises on wrong input.

    Use it to try the app without a browser. A file that lies in the app's own folder (a visitor's) is removed.

    Parameters
    ----------
    clip
        A file, or (sampling rate in Hz, samples of shape ``(n_samples,)`` or ``(n_samples, n_channels)``).
    model
        A folder, or what ``artifacts.load`` returned.
    only, unsure_below
        As for ``predict.predict``.
    enrolment
        Other clips of the same voice, at most ``MOST_ENROLLED``.
    look
        Whether to find out where the model looked, which takes longest.

    Returns
    -------
    Answer
        With ``error`` where the clip, a clip of the enrolment or the model can't be used.
    """
    try:
        signal = _read(clip, audio.LONG_DURATION_S)
        known = [_read(other, audio.LONG_DURATION_S) for other in enrolment[:MOST_ENROLLED]]
        model, only = predict.opened(model), tuple(only)
        found = predict.predict(
            signal, model, audio.SAMPLING_RATE, tuple(known), only, unsure_below
        )
        words = _in_words(found, unsure_below, only, len(known), model.variants)
        return Answer(
            prediction=found,
            words=words + _player(signal),
            signal=signal,
            picture=_clip_picture(
                signal, found, *(_where(model, signal, found, known, only) if look else ())
            ),
        )
    except (ValueError, OSError, MemoryError) as error:
        return Answer(error=_said(error))


def answer_long(
    recording: Clip | None,
    model: str | Path | Artifact | Average,
    only: tuple[str, ...] = (),
    unsure_below: float = UNSURE_BELOW,
    enrolment: tuple[Clip, ...] = (),
) -> Answer:
    """Answer a long recording: a timeline, and a verdict. Never raises on wrong input.

    Parameters
    ----------
    recording, model, only, unsure_below, enrolment
        As for :func:`answer`; up to ``predict.LONGEST_S``.
    """
    try:
        signal = _read(recording, predict.LONGEST_S)
        known = tuple(_read(other, audio.LONG_DURATION_S) for other in enrolment[:MOST_ENROLLED])
        model, only = predict.opened(model), tuple(only)
        windows = predict.timeline(signal, model, audio.SAMPLING_RATE, enrolment=known, only=only)
        if windows.empty:
            return Answer(
                windows=windows,
                words=_note("Nobody seems to speak in this recording: there is nothing to answer."),
            )
        verdicts = {"emotions": predict.verdict(windows)}
        kept = set(only or model.emotions)
        if all(kept & set(group) for group in predict.SATISFACTION.values()):
            verdicts["satisfaction"] = predict.verdict(windows, groups=predict.SATISFACTION)
        return Answer(
            windows=windows,
            verdicts=verdicts,
            words=_verdict_in_words(windows, verdicts, unsure_below),
            picture=_timeline_picture(signal, windows),
        )
    except (ValueError, OSError, MemoryError) as error:
        return Answer(error=_said(error))


def mistakes(predictions: Path, variant: str = "", n_most: int = 20) -> pd.DataFrame:
    """Return the test clips about which a model was most sure, and wrong.

    Parameters
    ----------
    predictions
        Table of saved predictions.
    variant
        By default the first that is there.
    n_most
        Rows at most.

    Returns
    -------
    pd.DataFrame
        The rows of the table, the surest first, with ``guess`` and its ``probability``.
    """
    table = read_table(predictions, "predictions").query("role == 'test'")
    table = table[table["variant"] == (variant or table["variant"].min())]
    table = table.assign(
        guess=metrics.predicted(table), probability=metrics.probabilities(table)[0].max(axis=1)
    )
    wrong = table[table["guess"] != table["truth"]]
    return (
        wrong.sort_values(["probability", "utterance_id"], ascending=[False, True])
        .head(n_most)
        .reset_index(drop=True)
    )


def show_mistake(row: pd.Series) -> str:
    """Return a mistake to look at and listen to (HTML); where its recording is not there, how to get it.

    Parameters
    ----------
    row
        Of :func:`mistakes`.
    """
    emotions = corpora.emotion_order(name[2:] for name in row.index if name.startswith("p_"))
    bars = _bars(
        {emotion: float(row[f"p_{emotion}"]) for emotion in emotions},
        {row["truth"]: "meant", row["guess"]: "answered"},
    )
    head = _head(
        row["guess"],
        f"{row['probability']:.0%} sure, and wrong: it was meant as <b>{html.escape(row['truth'])}</b>.",
    )
    corpus = row["utterance_id"].split("/")[0]
    try:
        known = read_table(paths.work(corpus) / "utterances.parquet", "utterances").set_index(
            "utterance_id"
        )
        clip = known.loc[row["utterance_id"]]
        signal = audio.load(clip["path"], clip["start_s"], clip["end_s"])
    except (ValueError, OSError, KeyError):
        return head + bars + _note(_how_to_get(corpus))
    said = f"“{html.escape(clip['text'])}”, " if clip["text"] else ""
    which = f"{said}speaker {html.escape(clip['speaker'])}. <small>{html.escape(row['utterance_id'])}</small>"
    figure, axes = _figure(2.0, 1)
    _draw_mel(axes[0], signal)
    axes[0].set_xlabel("seconds")
    return (
        head + bars + _note(which) + _player(signal) + _image(figure, "Mel-spectrogram of the clip")
    )


def build(model: str | Path = "") -> gr.Blocks:
    """Build the page; :func:`launch` also starts it.

    Parameters
    ----------
    model
        A folder, or a name in ``data/models``, to begin with; all others at hand can be chosen in the page.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or none at all.
    artifacts.Refused
        If it can't be used.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": _private_folder()}
    models = available()
    if model or not models:
        first = predict.find_model(str(model)).resolve()
        names = {folder.resolve(): name for name, folder in models.items()}
        models = {names.get(first, first.name): first} | models
    predict.opened(
        next(iter(models.values()))
    )  # the first visitor need not wait for it, and a damaged one is told now
    tables = _saved_predictions()

    def choose(name: str) -> tuple:
        try:
            return about(models[name]), gr.update(
                choices=predict.opened(models[name]).emotions, value=[]
            )
        except (ValueError, OSError) as error:
            return _error(_said(error)), gr.update(choices=[], value=[])

    def heard(
        path: str | None, name: str, only: list, unsure: float, voice: list
    ) -> Iterator[tuple]:
        quick = answer(path, models[name], only, unsure, voice, look=False)
        clip = (audio.SAMPLING_RATE, quick.signal) if quick.signal is not None else None
        yield None, clip, _shown(quick), quick.picture
        if clip:
            whole = answer(clip, models[name], only, unsure, voice)
            yield None, clip, _shown(whole), whole.picture

    def again(clip: tuple | None, name: str, only: list, unsure: float, voice: list) -> tuple:
        whole = answer(clip, models[name], only, unsure, voice) if clip else Answer(words=_WAITING)
        return _shown(whole), whole.picture

    def heard_long(path: str | None, name: str, only: list, unsure: float, voice: list) -> tuple:
        found = answer_long(path, models[name], only, unsure, voice)
        return (
            None,
            _shown(found),
            found.picture,
            gr.update(
                value=_timeline_table(found.windows),
                visible=found.windows is not None and len(found.windows) > 0,
            ),
        )

    def enrol(path: str, voice: list) -> tuple:
        fault = ""
        try:
            voice = [*voice, (audio.SAMPLING_RATE, _read(path, audio.LONG_DURATION_S))][
                -MOST_ENROLLED:
            ]
        except (ValueError, OSError, MemoryError) as error:
            fault = _error(_said(error))
        seconds = sum(len(samples) for _, samples in voice) / audio.SAMPLING_RATE
        return (
            None,
            voice,
            _note(f"{len(voice)} recording(s) of this voice, {seconds:.0f} s together.") + fault,
        )

    def list_mistakes(name: str | None, variant: str | None) -> tuple:
        if name is None:
            return (
                gr.skip(),
                gr.skip(),
                _note(
                    f"No saved predictions are here. <code>./run_all.sh</code> {RAN}, and trains."
                ),
            )
        try:
            variants = sorted(read_table(tables[name], "predictions")["variant"].unique())
            variant = variant if variant in variants else variants[0]
            rows = mistakes(tables[name], variant)
        except (ValueError, OSError) as error:
            return gr.skip(), gr.skip(), _error(_said(error))
        labels = [
            (f"{row.probability:.0%} {row.guess}, meant as {row.truth}", i)
            for i, row in enumerate(rows.itertuples())
        ]
        return (
            gr.update(choices=variants, value=variant),
            gr.update(choices=labels, value=0 if labels else None),
            show_mistake(rows.iloc[0]) if labels else _note("It made no mistake."),
        )

    def pick_mistake(name: str, variant: str, index: int) -> str:
        rows = mistakes(tables[name], variant)
        return show_mistake(rows.iloc[index]) if index is not None and index < len(rows) else ""

    sound = {"type": "filepath", "editable": False, "buttons": []}
    # an upload that is never answered, because its page was closed, is removed after ten minutes
    with gr.Blocks(
        title="Emotion in speech", analytics_enabled=False, delete_cache=(60, 600), fill_width=True
    ) as page:
        gr.HTML(_INTRODUCTION)
        chosen = gr.Dropdown(
            list(models), value=next(iter(models)), label="Model that answers", elem_id="ser-model"
        )
        clip, voice = gr.State(time_to_live=3600), gr.State([], time_to_live=3600)
        with gr.Tab("A clip"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                spoken = gr.Audio(
                    sources="microphone",
                    label="Speak, up to a minute",
                    elem_id="ser-microphone",
                    **sound,
                )
                given = gr.Audio(
                    sources="upload", label="Or choose a recording", elem_id="ser-clip", **sound
                )
                unsure = gr.Slider(0, 1, UNSURE_BELOW, step=0.05, label="Say “unsure” below")
                with gr.Accordion("Choose among some emotions", open=False):
                    only = gr.CheckboxGroup(
                        [], show_label=False, container=False, elem_id="ser-only"
                    )
                    gr.HTML(_note("None ticked: all. The others' probabilities are set to 0."))
                with gr.Accordion("Let it know the voice", open=False):
                    gr.HTML(
                        _note(
                            "Some models do better when they know how a voice usually sounds. Add several recordings of "
                            "the same person in mixed moods, one after the other; a few of one mood alone do harm."
                        )
                    )
                    other = gr.Audio(
                        sources=["upload", "microphone"],
                        label="Add a recording",
                        elem_id="ser-voice",
                        **sound,
                    )
                    enrolled = gr.HTML(elem_id="ser-enrolled")
                    forget = gr.Button("Forget this voice", size="sm")
            with gr.Column(scale=3, min_width=320):
                words, picture = (
                    gr.HTML(_WAITING, elem_id="ser-answer"),
                    gr.HTML(elem_id="ser-picture"),
                )
        with gr.Tab("A long recording"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                call = gr.Audio(
                    sources="upload",
                    elem_id="ser-call",
                    **sound,
                    label=f"A call, an interview: up to {predict.LONGEST_S / 3600:.0f} hours",
                )
                gr.HTML(
                    _note(
                        f"It is answered in windows of {predict.WINDOW_S:.0f} s, one every {predict.WINDOW_HOP_S:.0f} s, "
                        "where somebody speaks; an hour takes a minute or more. Emotions and voice are those chosen for "
                        "a clip. The model hears all speakers as one."
                    )
                )
            with gr.Column(scale=3, min_width=320):
                long_words, long_picture = (
                    gr.HTML(_WAITING, elem_id="ser-verdict"),
                    gr.HTML(elem_id="ser-timeline"),
                )
                windows = gr.Dataframe(
                    visible=False,
                    interactive=False,
                    max_height=320,
                    show_label=False,
                    buttons=[],
                    elem_id="ser-windows",
                )
        with gr.Tab("Confident mistakes"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                gr.HTML(
                    _note(
                        "Test clips about which a model was most sure, and wrong. Listen: would you have known?"
                    )
                )
                table = gr.Dropdown(
                    list(tables),
                    value=next(
                        (name for name in tables if "average_weighted" in name),
                        next(iter(tables), None),
                    ),
                    label="Predictions of",
                )
                variant = gr.Radio([], label="Variant")
                listed = gr.Radio([], label="The surest first", elem_id="ser-mistakes")
            with gr.Column(scale=3, min_width=320):
                mistake = gr.HTML(elem_id="ser-mistake")
        with gr.Tab("The model"):
            card = gr.Markdown(elem_id="ser-card")
        gr.HTML(
            _note(
                "What you send is not kept: a recording is removed as soon as it has been read. The models learned from "
                "acted speech. Do not use them to judge people."
            ),
            elem_id="ser-foot",
        )

        settings = [chosen, only, unsure, voice]
        private = {"api_visibility": "private", "show_progress": "minimal"}
        for source, event in ((spoken, spoken.stop_recording), (given, given.upload)):
            event(heard, [source, *settings], [source, clip, words, picture], **private).then(
                js=_SCROLL
            )
        gr.on(
            [unsure.release, only.input],
            again,
            [clip, *settings],
            [words, picture],
            trigger_mode="always_last",
            **private,
        )
        call.upload(
            heard_long, [call, *settings], [call, long_words, long_picture, windows], **private
        )
        gr.on(
            [other.upload, other.stop_recording],
            enrol,
            [other, voice],
            [other, voice, enrolled],
            **private,
        ).then(again, [clip, *settings], [words, picture], **private)
        forget.click(lambda: ([], ""), None, [voice, enrolled], **private).then(
            again, [clip, *settings], [words, picture], **private
        )
        chosen.input(choose, chosen, [card, only], **private).then(
            again, [clip, *settings], [words, picture], **private
        )
        shown = [variant, listed, mistake]
        gr.on([table.input, variant.input], list_mistakes, [table, variant], shown, **private)
        listed.input(pick_mistake, [table, variant, listed], mistake, **private)
        page.load(choose, chosen, [card, only], **private)
        page.load(list_mistakes, [table, variant], shown, **private)
    return page.queue(max_size=20, api_open=False)


def launch(
    model: str | Path = "", host: str = "127.0.0.1", port: int | None = None, share: bool = False
) -> gr.Blocks:
    """Start the app, and return without waiting; in JupyterLab and on Colab it appears below the cell.

    Parameters
    ----------
    model
        As for :func:`build`.
    host
        Address to listen on. With "0.0.0.0" everybody in the network can use it; a browser then offers no microphone, unless
        it comes by https.
    port
        By default the first free one from 7860 on.
    share
        Whether Gradio's public tunnel is opened, through which what visitors send goes to its servers.

    Returns
    -------
    gr.Blocks
        ``close()`` ends it.
    """
    page = build(model)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        max_file_size=LARGEST_UPLOAD,
        theme=gr.themes.Base(
            primary_hue="slate",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=_CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        quiet=True,
        height=900,
        state_session_capacity=100,
    )
    return page


def main(arguments: list[str] | None = None) -> int:
    """Recognise emotions in a browser; returns 2 if it can't start."""
    parser = argparse.ArgumentParser(prog="python -m helpers.app", description=main.__doc__)
    parser.add_argument("--model", default="", help="folder of a model, or its name in data/models")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    try:
        page = launch(options.model, options.host, options.port)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    signals.signal(
        signals.SIGTERM, lambda *_: sys.exit(0)
    )  # so that the private folder is removed then, too
    print(f"{page.local_url} is open; Ctrl+C ends it", flush=True)
    page.block_thread()
    return 0


# --- reading what a visitor sent ---------------------------------------------------------------------------------------


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="ser-app-")


def _private_folder() -> str:
    """Return the folder that Gradio puts uploads into: readable by this user alone, removed at exit."""
    return str(Path(_temporary().name).resolve())


def _read(clip: Clip | None, longest_s: float) -> np.ndarray:
    """Return what a visitor sent as a signal, and remove its file."""
    if clip is None:
        raise ValueError("there is no recording: speak, or choose a file")
    if isinstance(clip, tuple):
        return predict.read_signal(np.asarray(clip[1]), clip[0], longest_s)
    path = Path(clip)
    own = path.resolve().is_relative_to(_private_folder())
    try:
        if own and not path.exists():
            raise FileNotFoundError(
                "the recording is gone: somebody sent the same one in the same moment. Send it again"
            )
        if path.is_file() and path.stat().st_size > LARGEST_UPLOAD:
            raise ValueError(
                f"{path.name} has {path.stat().st_size / 2**20:.0f} MB; expected at most "
                f"{LARGEST_UPLOAD / 2**20:.0f}: send a shorter part, or flac or mp3"
            )
        return predict.read_signal(path, None, longest_s)
    finally:
        if own:
            path.unlink(missing_ok=True)


def _said(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text + ("" if text.endswith((".", "?", "!")) else ".")


# --- words -------------------------------------------------------------------------------------------------------------


def _how_to_get(corpus: str) -> str:
    about_it, name = corpora.get(corpus), html.escape(corpus)
    first = (
        f"Get them from {html.escape(about_it.manual)}. Then "
        if about_it.manual and corpus != "demo"
        else ""
    )
    return (
        f"The recordings of {html.escape(about_it.title)} are not on this machine, so this clip can't be heard. {first}"
        f"<code>./run_all.sh --corpus {name} --only 01,02</code> {RAN}; start the app again with the same "
        "<code>SER_DATA</code> and <code>SER_WORK</code>."
    )


def _shown(found: Answer) -> str:
    return _error(found.error) if found.error else found.words


def _note(text: str) -> str:
    return f'<p class="ser-note">{text}</p>'


def _error(text: str) -> str:
    return (
        f'<div class="ser-error" role="alert"><b>That did not work.</b> {html.escape(text)}</div>'
    )


def _head(word: str, rest: str) -> str:
    colour = "#8c8c8c" if word == predict.UNSURE else plots.colours([word])[word]
    return (
        f'<div class="ser-head" style="border-color:{colour}"><span class="ser-word">{html.escape(word)}</span>'
        f"<span>{rest}</span></div>"
    )


def _bars(shares: dict[str, float], marks: dict[str, str] | None = None) -> str:
    """Return a bar for each share, 0 to 1, in its colour."""
    palette, marks = plots.colours(shares), marks or {}
    rows = [
        f'<div class="ser-bar"><span class="ser-name">{html.escape(name)}'
        + (f" <em>{html.escape(marks[name])}</em>" if name in marks else "")
        + f'</span><span class="ser-track"><span style="width:{100 * share:.1f}%;background:{palette[name]}"></span></span>'
        f'<span class="ser-value">{share:.0%}</span></div>'
        for name, share in shares.items()
    ]
    return f'<div class="ser-bars">{"".join(rows)}</div>'


def _sure(best: str, share: float, unsure_below: float) -> str:
    return (
        f"{share:.0%} probable"
        if share >= unsure_below
        else f"The nearest is {html.escape(best)} with {share:.0%}, below the {unsure_below:.0%} that you ask for."
    )


def _in_words(
    found: predict.Prediction,
    unsure_below: float,
    only: tuple[str, ...],
    n_known: int,
    variants: list[str],
) -> str:
    if found.variant == "speaker-normalised":
        who = f"Answered by the speaker-normalised variant: it compared this clip with {n_known} other(s) of the same voice."
    elif n_known:
        who = (
            "Answered by the inductive variant. This model has no speaker-normalised one, so the other recordings of the "
            "voice were not used."
        )
    else:
        who = "Answered by the inductive variant: it goes by this clip alone." + (
            " With other recordings of the voice, this model could do better."
            if "speaker-normalised" in variants
            else ""
        )
    kept = {
        emotion: share
        for emotion, share in found.probabilities.items()
        if not only or emotion in only
    }
    words = _head(found.emotion, _sure(*found.top[0], unsure_below)) + _bars(kept) + _note(who)
    if not found.warnings:
        return words
    doubts = "".join(f"<li>{html.escape(text)}</li>" for text in found.warnings)
    return words + (
        '<div class="ser-doubt"><b>Reasons to doubt it.</b> This clip is unlike the training recordings:'
        f"<ul>{doubts}</ul></div>"
    )


def _verdict_in_words(
    windows: pd.DataFrame, verdicts: dict[str, dict[str, float]], unsure_below: float
) -> str:
    best, share = next(iter(verdicts["emotions"].items()))
    shares = {
        emotion: verdicts["emotions"][emotion]
        for emotion in corpora.emotion_order(verdicts["emotions"])
    }
    words = (
        _head(best if share >= unsure_below else predict.UNSURE, _sure(best, share, unsure_below))
        + _bars(shares)
        + _note(
            f"The mean over {len(windows)} windows; later ones count more, up to {predict.LATE_WEIGHT:.0f} times."
        )
    )
    if "satisfaction" in verdicts:
        groups = "; ".join(
            f"{name}: {', '.join(group)}" for name, group in predict.SATISFACTION.items()
        )
        words += _note(f"In two groups, as of a customer ({groups}):") + _bars(
            {name: verdicts["satisfaction"][name] for name in predict.SATISFACTION}
        )
    return words


def _timeline_table(windows: pd.DataFrame | None) -> pd.DataFrame | None:
    if windows is None:
        return None
    return pd.DataFrame(
        {
            "from": windows["start_s"].map(_clock),
            "to": windows["end_s"].map(_clock),
            "emotion": windows["emotion"],
            "probability": windows["probability"].map("{:.0%}".format),
            "speech": windows["speech"].map("{:.0%}".format),
        }
    )


def _clock(seconds: float, _place: int | None = None) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return (f"{hours}:{rest // 60:02d}" if hours else f"{rest // 60}") + f":{rest % 60:02d}"


# --- pictures ----------------------------------------------------------------------------------------------------------


def _where(
    model: Artifact | Average,
    signal: np.ndarray,
    found: predict.Prediction,
    known: list,
    only: tuple,
) -> tuple:
    """Return where a model looked, as ("map", glow over the mel picture, its start in s) or ("curve", of the occlusion)."""
    emotion = found.top[0][0]
    part = (
        None
        if isinstance(model, Average) or found.variant != "inductive"
        else model.parts["inductive"]
    )
    if (
        not isinstance(part, NetworkPart)
        or part.build not in CAM_LAYERS
        or part.options.get("n_mfcc")
    ):
        return "curve", explain.occlusion(model, signal, emotion, known or None, only)
    net, image = part.net(len(model.emotions)), model.input(signal)
    glow = explain.grad_cam(
        net,
        net.blocks[CAM_LAYERS[part.build]],
        image[None],
        np.array([model.emotions.index(emotion)]),
    )[0]
    heard = audio.trim(signal) if model.input.arguments.get("trim", True) else signal
    start = (
        heard.__array_interface__["data"][0] - signal.__array_interface__["data"][0]
    ) // signal.itemsize  # it is a view
    width = image.any(axis=0).sum()
    return "map", glow[:, :width], start / audio.SAMPLING_RATE


def _clip_picture(
    signal: np.ndarray, found: predict.Prediction, kind: str = "", where=None, start_s: float = 0.0
) -> str:
    figure, axes = _figure(4.8, 3, [1, 1.6, 1.2] if kind != "map" else [1, 1.4, 1.4])
    emotion = found.top[0][0]
    colour = plots.colours([emotion])[emotion]
    plots.waveform(signal, axes[0], audio.SAMPLING_RATE)
    axes[0].set_title("The signal")
    _draw_mel(axes[1], signal)
    axes[2].set(xlabel="seconds", xlim=(0, len(signal) / audio.SAMPLING_RATE))
    axes[2].set_title(f"Where the model looked for “{emotion}”" + ("" if kind else " …"))
    text = "The picture shows how loud the clip is (brighter), at which frequency, and when."
    if kind == "map":
        end_s = start_s + where.shape[1] / spectrograms.FRAMES_PER_S
        _draw_mel(axes[2], signal, "gray")
        axes[2].imshow(
            where,
            cmap="inferno",
            aspect="auto",
            vmin=0,
            vmax=1,
            alpha=0.65 * where,
            extent=(start_s, end_s, 0, 64),
        )
        axes[2].set(
            title=f"Where the model looked for “{emotion}”",
            xlim=(0, len(signal) / audio.SAMPLING_RATE),
        )
        text += " Where it glows, the surroundings raised the score of the answer (Grad-CAM)."
    elif kind == "curve":
        middle = (where["start_s"] + where["end_s"]) / 2
        axes[2].bar(
            middle,
            where["fall"],
            width=(where["end_s"] - where["start_s"]).iloc[0] / 2,
            color=colour,
        )
        axes[2].axhline(0, color="#222222", lw=0.8)
        low, high = axes[2].get_ylim()
        axes[2].set(
            ylabel="fall", ylim=(min(low, -0.02), max(high, 0.1))
        )  # next to nothing shall look like it
        axes[2].yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0%}".replace("-", "−"))
        )
        text += (
            f" A bar below it shows by how much “{html.escape(emotion)}” gets less probable when that part is made quiet "
            "(occlusion)."
        )
    else:
        axes[2].set_yticks([])
        text += " Finding out where the model looked …"
    return _image(figure, "Signal, mel-spectrogram, and where the model looked") + _note(
        text + (" Such maps say where, not why." if kind else "")
    )


def _timeline_picture(signal: np.ndarray, windows: pd.DataFrame) -> str:
    figure, axes = _figure(4.2, 2, [1, 2.2])
    plots.waveform(signal, axes[0], audio.SAMPLING_RATE)
    axes[0].set_title("The signal")
    plots.timeline(windows, axes[1])
    axes[1].set(
        title="How probable each emotion is",
        xlim=(0, len(signal) / audio.SAMPLING_RATE),
        xlabel="minutes:seconds",
    )
    axes[1].xaxis.set_major_formatter(FuncFormatter(_clock))
    figure.legend(
        *axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return _image(figure, "Probability of each emotion over time")


def _figure(
    height: float, n_rows: int, ratios: list[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure that pyplot does not know of, so that it goes when nobody needs it any more."""
    plots.set_style()
    figure = Figure((5.6, height), layout="constrained")
    return figure, list(
        figure.subplots(n_rows, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    )


def _draw_mel(axis: Axes, signal: np.ndarray, palette: str = "magma") -> None:
    image = spectrograms.mel_image(signal, trim=False)
    axis.imshow(
        image,
        cmap=palette,
        aspect="auto",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(0, len(signal) / audio.SAMPLING_RATE, 0, len(image)),
    )
    centres = features.mel_frequencies(len(image))[1:-1]
    axis.set_yticks(
        np.interp([500, 1000, 2000, 4000], centres, np.arange(len(image)) + 0.5),
        ["0.5", "1", "2", "4"],
    )
    axis.set(title="Mel picture", ylabel="kHz")
    axis.grid(visible=False)


def _image(figure: Figure, text: str) -> str:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150)
    return (
        f'<img class="ser-figure" alt="{html.escape(text)}" src="{_inline(target, "image/png")}">'
    )


def _player(signal: np.ndarray) -> str:
    target = io.BytesIO()
    soundfile.write(target, signal, audio.SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return f'<audio class="ser-player" controls src="{_inline(target, "audio/wav")}"></audio>'


def _inline(content: io.BytesIO, kind: str) -> str:
    """Return content as an address that holds it, so that no file has to be written."""
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _saved_predictions() -> dict[str, Path]:
    """Return tables of predictions, name → file: the published ones, and those of own runs."""
    published, work = paths.PROJECT / "data/results", paths.work()
    found = {
        " / ".join(path.relative_to(published).with_suffix("").parts): path
        for path in sorted(published.glob("*/*/*.parquet"))
    }
    own = {
        " / ".join(path.relative_to(work).with_suffix("").parts[i] for i in (0, 1, 3))
        + " (own run)": path
        for path in sorted(work.glob("*/*/predictions/*.parquet"))
    }
    return found | own


_WAITING = _note("The answer appears here.")
_INTRODUCTION = """<div class="ser-title"><h1>Emotion in speech</h1><p>Say something, or choose a recording: you see which
emotion a model hears in it, how sure it is, and where in the clip it looked. It hears how something sounds, not what somebody
feels.</p></div>"""
# on a phone the answer lies below the settings
_SCROLL = """() => {
  const answer = document.querySelector("#ser-answer");
  if (answer.getBoundingClientRect().top > 0.8 * window.innerHeight) answer.scrollIntoView({behavior: "smooth"});
}"""
_CSS = """
.gradio-container {max-width: 1120px !important; width: 100%; margin: 0 auto !important}
.gradio-container main {width: 100%}
.ser-title h1 {font-size: 1.7rem; font-weight: 650; margin: .2rem 0}
.ser-title p, .ser-note {opacity: .8; line-height: 1.45; margin: .3rem 0; max-width: 46rem}
.ser-note {font-size: .92rem}
.ser-head {border-left: .5rem solid; padding: .1rem 0 .1rem .9rem; margin: .2rem 0 1rem; display: flex; flex-wrap: wrap;
  align-items: baseline; gap: .1rem .8rem}
.ser-word {font-size: 2rem; font-weight: 650; line-height: 1.15}
.ser-bars {display: grid; gap: .35rem; margin: .6rem 0}
.ser-bar {display: grid; grid-template-columns: 8.5rem 1fr 3rem; align-items: center; gap: .6rem}
.ser-bar em {font-size: .8rem; opacity: .8}
.ser-track {background: var(--background-fill-secondary); border-radius: 3px; height: .85rem; overflow: hidden}
.ser-track span {display: block; height: 100%}
.ser-value {text-align: right; font-variant-numeric: tabular-nums}
.ser-error, .ser-doubt {border-left: .25rem solid #c8373f; padding: .5rem .9rem; margin: .6rem 0; line-height: 1.45;
  background: var(--background-fill-secondary); overflow-wrap: anywhere}
.ser-doubt {border-color: #f2b134}
.ser-doubt ul {margin: .2rem 0 0 1.1rem; list-style: disc}
.ser-figure {width: 100%; max-width: 46rem; border-radius: 4px; margin: .4rem 0}
.ser-player {width: 100%; max-width: 46rem; height: 2.4rem; margin: .4rem 0}
#ser-clip .audio-container, #ser-call .audio-container, #ser-voice .audio-container {height: 9rem; min-height: 9rem}
button[role=tab].selected {color: var(--body-text-color); font-weight: 600}
#ser-mistakes .wrap {display: grid; gap: .25rem; max-height: 24rem; overflow-y: auto}
#ser-foot {border-top: 1px solid var(--border-color-primary); padding-top: .4rem}
@media (max-width: 500px) {.ser-bar {grid-template-columns: 5.5rem 1fr 3rem} .ser-bar em {display: block}}
"""


if __name__ == "__main__":
    sys.exit(main())
