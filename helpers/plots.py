"""One style for all figures: each emotion has one colour and one place, everywhere."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from helpers import cache, corpora, paths

BLUE, RED, BLACK = "#33658a", "#c8373f", "#222222"
VARIANTS = {"inductive": BLUE, "corpus-normalised": "#8c9a5b", "speaker-normalised": "#86bbd8"}
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
    """Return emotion → colour, in the project's order; unknown names get colours of their own.

    Classes of one sex have their emotion's colour, women's a little lighter.
    """
    order = corpora.emotion_order(emotions)
    others = sorted({corpora.without_sex(emotion) for emotion in order} - set(corpora.EMOTIONS))
    found = {}
    for name in order:
        plain = corpora.without_sex(name)
        known = (
            corpora.EMOTIONS[plain].colour
            if plain in corpora.EMOTIONS
            else _OTHERS[others.index(plain) % 6]
        )
        lighter = name.startswith("female_")
        found[name] = sns.light_palette(known, 4).as_hex()[2] if lighter else known
    return found


def show_markdown(text: str) -> None:
    """Show text (markdown) below the cell: what came out, in words, with numbers from variables."""
    display(Markdown(text))


def save_figure(figure: plt.Figure, corpus: str, name: str) -> Path:
    """Save a figure as ``SER_WORK/<corpus>/figures/<name>.png``, for the report.

    Parameters
    ----------
    figure
        The figure.
    corpus
        Name.
    name
        ``NN_what_it_shows``, NN being the notebook's number.
    """
    path = paths.work(corpus) / "figures" / f"{name}.png"
    metadata = {"Software": None}  # else equal figures would differ between versions
    cache.write_atomically(
        path, lambda handle: figure.savefig(handle, format="png", metadata=metadata)
    )
    return path


def confusion_matrix(counts: pd.DataFrame, axis: plt.Axes, title: str = "") -> None:
    """Draw a confusion matrix (``metrics.confusion``) as shares of each row, which are recalls."""
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    sns.heatmap(
        share,
        vmin=0,
        vmax=1,
        cmap="Blues",
        annot=True,
        fmt=".0%",
        annot_kws={"size": 8},
        linewidths=0.5,
        cbar=False,
        ax=axis,
    )
    axis.set(title=title, xlabel="prediction", ylabel="truth")
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)


def results_bars(results: pd.DataFrame, axis: plt.Axes, title: str = "") -> None:
    """Draw UAR with its interval for every model and variant of a results table."""
    first = results.sort_values("variant").drop_duplicates("model")
    order = first.sort_values("uar")["model"].tolist()
    for variant, rows in results.groupby("variant"):
        y = rows["model"].map(order.index) + (0.18 if variant == "inductive" else -0.18)
        axis.barh(y, rows["uar"], 0.34, color=VARIANTS[variant], zorder=2, label=variant)
        axis.hlines(y, rows["uar_low"], rows["uar_high"], color=BLACK, lw=1, zorder=3)
    axis.set_yticks(range(len(order)), order)
    axis.set(title=title, xlabel="UAR (line: 95 % interval over speakers)", xlim=(0, 1))
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=9)


def learning_curves(curves: pd.DataFrame, axes: np.ndarray) -> None:
    """Draw training loss and validation loss, a line per fold; the epochs that are kept are marked.

    Parameters
    ----------
    curves
        Schema ``curves``, of one model and variant.
    axes
        Two.
    """
    titles = {"train_loss": "training loss", "validation_nll": "validation loss"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for _, curve in curves.groupby("fold"):
            axis.plot(curve["epoch"], curve[column], color=BLUE, alpha=0.5)
        axis.set(xlabel="epoch", ylabel="cross-entropy", title=title)
    kept = curves[curves["kept"]]
    axes[1].plot(kept["epoch"], kept["validation_nll"], "o", color=RED, ms=5)


def timeline(windows: pd.DataFrame, axis: plt.Axes) -> None:
    """Draw how probable each emotion is over a recording; gaps are left where nobody speaks.

    Parameters
    ----------
    windows
        From ``predict.timeline``, at least one row. A window is drawn around its middle.
    axis
        Seconds are the horizontal axis.
    """
    emotions = corpora.emotion_order(name[2:] for name in windows if name.startswith("p_"))
    middle = (windows["start_s"] + windows["end_s"]) / 2
    hop = middle.diff().median() if len(windows) > 1 else windows["end_s"].iloc[0] * 2
    width = middle.shift(-1).sub(middle).fillna(hop).clip(upper=hop)
    below = np.zeros(len(windows))
    for emotion, colour in colours(emotions).items():
        share = windows[f"p_{emotion}"].to_numpy()
        axis.bar(
            middle - hop / 2,
            share,
            width,
            bottom=below,
            align="edge",
            color=colour,
            linewidth=0,
            label=emotion,
        )
        below = below + share
    axis.set(ylim=(0, 1), xlabel="time (s)")
    axis.yaxis.set_major_formatter("{x:.0%}")
