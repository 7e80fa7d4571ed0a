"""One style for all figures: each emotion has one colour and one place, everywhere."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.ticker import PercentFormatter

from helpers import metrics, paths
from helpers.cache import write_atomically
from helpers.corpora import EMOTIONS, emotion_order, without_sex

# Warm for high arousal, cool for low; distinguishable in print and with colour-blind eyes by lightness too
_COLOURS = {
    "neutral": "#8c8c8c",
    "calm": "#7fb8ad",
    "happy": "#f2b134",
    "excited": "#f78d3f",
    "sad": "#3b6ea5",
    "angry": "#c8373f",
    "frustrated": "#8a4b38",
    "fearful": "#7b52ab",
    "disgust": "#5c8a3a",
    "surprised": "#e377c2",
    "bored": "#4fa3c7",
    "dislike": "#94603a",
}
VARIANTS = {"inductive": "#33658a", "corpus-normalised": "#8c9a5b", "speaker-normalised": "#86bbd8"}
_OTHERS = ["#17becf", "#bcbd22", "#a05195", "#665191", "#2f4b7c", "#ff7c43"]


def set_style() -> None:
    """Use the project's style from here on."""
    sns.set_theme(style="whitegrid", context="notebook")
    pd.options.display.max_colwidth = 160  # a finding of the audit is a sentence
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 130,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.figsize": (9, 4),
        }
    )


def colours(emotions) -> dict[str, str]:
    """Return emotion → colour, in the project's order; names it does not know get colours of their own.

    Classes of one sex have their emotion's colour, women's a little lighter.
    """
    order = emotion_order(emotions)
    others = sorted({without_sex(e) for e in order} - set(EMOTIONS))
    plain = {
        e: _COLOURS.get(without_sex(e)) or _OTHERS[others.index(without_sex(e)) % len(_OTHERS)]
        for e in order
    }
    return {
        e: sns.light_palette(c, 4).as_hex()[2] if e.startswith("female_") else c
        for e, c in plain.items()
    }


def say(text: str) -> None:
    """Show a sentence (markdown) below the cell: what came out, in words, with numbers from variables."""
    display(Markdown(text))


def save_figure(figure: plt.Figure, corpus: str, name: str) -> Path:
    """Save a figure as ``SER_WORK/<corpus>/figures/<name>.png``; the report and the publishing take it from there.

    Parameters
    ----------
    name
        ``NN_what_it_shows``, NN being the notebook's number.
    """
    path = paths.work(corpus) / "figures" / f"{name}.png"
    write_atomically(
        path, lambda handle: figure.savefig(handle, format="png", metadata={"Software": None})
    )
    return path


def confusion_matrix(counts: pd.DataFrame, axis: plt.Axes, title: str = "") -> None:
    """Draw a confusion matrix: colour and number are the share of a row (recall), counts stay out of it.

    Parameters
    ----------
    counts
        From ``metrics.confusion``.
    """
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    sns.heatmap(
        share,
        annot=share.map("{:.0%}".format),
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=1,
        cbar=False,
        ax=axis,
        annot_kws={"size": 8},
        linewidths=0.5,
    )
    axis.set(title=title, xlabel="prediction", ylabel="truth")
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)


def results_bars(results: pd.DataFrame, axis: plt.Axes, title: str = "") -> None:
    """Draw UAR with its interval for every model of a results table, the variants side by side, in the order of the first.

    Parameters
    ----------
    results
        Schema ``results``.
    """
    order = (
        results.sort_values("variant").drop_duplicates("model").sort_values("uar")["model"].tolist()
    )
    for row in results.itertuples():
        y = order.index(row.model) + (0.18 if row.variant == "inductive" else -0.18)
        axis.barh(y, row.uar, height=0.34, color=VARIANTS[row.variant], zorder=2)
        if np.isfinite(row.uar_low):
            axis.plot([row.uar_low, row.uar_high], [y, y], color="#222222", lw=1, zorder=3)
    axis.set_yticks(range(len(order)), order)
    axis.set(title=title, xlabel="UAR (line: 95 % interval over speakers)", xlim=(0, 1))
    axis.grid(axis="y", visible=False)
    for variant in results["variant"].unique():
        axis.barh(np.nan, np.nan, color=VARIANTS[variant], label=variant)
    axis.legend(loc="lower right", fontsize=9)


def reliability(
    predictions: dict[str, pd.DataFrame], axis: plt.Axes, n_bins: int = 15, title: str = ""
) -> None:
    """Draw a reliability diagram: of the clips about which a model is so sure, how many are right?

    Parameters
    ----------
    predictions
        Label → test rows. Bins of fewer than ten clips are left out.
    """
    for label, rows in predictions.items():
        points = metrics.confidence_bins(rows, n_bins).query("n >= 10")
        ece = metrics.expected_calibration_error(rows, n_bins)
        axis.plot(
            points["confidence"],
            points["accuracy"],
            "o-",
            color=VARIANTS.get(label),
            ms=4,
            label=f"{label}: ECE {ece:.3f}",
        )
    axis.plot([0, 1], [0, 1], color="#222222", ls=":")
    axis.set(
        title=title, xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1)
    )
    axis.legend(fontsize=9, loc="upper left")


def recall_bars(counts: pd.DataFrame, axis: plt.Axes, title: str = "") -> None:
    """Draw each emotion's recall in its colour, with chance as a line."""
    recall = np.diag(counts) / counts.sum(axis=1).clip(lower=1)
    palette = colours(counts.index)
    axis.bar(recall.index, recall, color=[palette[e] for e in recall.index])
    axis.axhline(1 / len(recall), color="#222222", lw=1, ls=":")
    axis.set(title=title, ylabel="recall", ylim=(0, 1))
    axis.tick_params(axis="x", rotation=45)


def learning_curves(curves: pd.DataFrame, axes: np.ndarray) -> None:
    """Draw training loss, and negative log-likelihood on the valid speakers, a line per fold; the kept epochs are marked.

    Parameters
    ----------
    curves
        Schema ``curves``, of one variant.
    axes
        Two.
    """
    titles = {"train_loss": "training loss", "valid_nll": "valid speakers: negative log-likelihood"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for _, curve in curves.groupby("fold"):
            axis.plot(curve["epoch"], curve[column], color="#33658a", alpha=0.5)
        axis.set(xlabel="epoch", ylabel="nats", title=title)
    kept = curves[curves["kept"]]
    axes[1].plot(kept["epoch"], kept["valid_nll"], "o", color="#c8373f", ms=5)


def overlay(images: np.ndarray, maps: np.ndarray, titles: list[str], axes: np.ndarray) -> None:
    """Draw mel images in grey with a map (0 to 1) glowing over each, cut at the longest clip; unused axes stay empty."""
    width = images.any(axis=(0, 1)).nonzero()[0].max(initial=0) + 1
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, glow, title in zip(axes.flat, images, maps, titles, strict=False):
        axis.imshow(image[:, :width], cmap="gray", aspect="auto", vmin=0, vmax=255)
        axis.imshow(
            glow[:, :width],
            cmap="inferno",
            aspect="auto",
            vmin=0,
            vmax=1,
            alpha=0.55 * glow[:, :width],
        )
        axis.set_title(title, fontsize=10)


def answer_bars(probabilities: dict[str, float], axis: plt.Axes, title: str = "") -> None:
    """Draw a bar for each emotion's probability, in its colour."""
    axis.barh(
        list(probabilities),
        list(probabilities.values()),
        color=list(colours(probabilities).values()),
    )
    axis.set(xlim=(0, 1), title=title)
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.invert_yaxis()


def waveform(
    signal: np.ndarray, axis: plt.Axes, sampling_rate: int = 16_000, n_most: int = 1500
) -> None:
    """Draw lowest and highest sample of each short stretch, which looks as all samples do; seconds are the horizontal axis."""
    starts = np.unique(
        np.linspace(0, len(signal), min(n_most, len(signal)), endpoint=False).astype(int)
    )
    low, high = np.minimum.reduceat(signal, starts), np.maximum.reduceat(signal, starts)
    axis.fill_between(starts / sampling_rate, low, high, color="#33658a", lw=0.3)
    axis.set_yticks([])
    axis.set_xlim(0, len(signal) / sampling_rate)
    axis.grid(visible=False)


def timeline(windows: pd.DataFrame, axis: plt.Axes) -> None:
    """Draw how probable each emotion is over a recording; seconds are the horizontal axis.

    A window stands for its middle; where nobody speaks, nothing is drawn.

    Parameters
    ----------
    windows
        From ``predict.timeline``, at least one row.
    """
    emotions = emotion_order(name[2:] for name in windows if name.startswith("p_"))
    middle = ((windows["start_s"] + windows["end_s"]) / 2).to_numpy()
    hop = (
        float(np.median(np.diff(middle)))
        if len(middle) > 1
        else float(windows["end_s"].iloc[0] - windows["start_s"].iloc[0])
    )
    until = np.minimum(
        middle + hop / 2, np.append(middle[1:] - hop / 2, np.inf)
    )  # the last window may lie nearer
    edges = np.stack([middle - hop / 2, until], axis=1).clip(0)
    apart = np.append(np.diff(middle) > 1.5 * hop, True)
    place = np.concatenate(
        [[*pair, pair[1]] if gap else pair for pair, gap in zip(edges, apart, strict=True)]
    )
    drawn = np.concatenate([[True, True, False] if gap else [True, True] for gap in apart])
    rows = np.concatenate([[i] * (3 if gap else 2) for i, gap in enumerate(apart)])
    below = np.zeros(len(place))
    for emotion, colour in colours(emotions).items():
        above = below + windows[f"p_{emotion}"].to_numpy()[rows]
        axis.fill_between(place, below, above, where=drawn, color=colour, lw=0, label=emotion)
        below = above
    axis.set(ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1, 0))
