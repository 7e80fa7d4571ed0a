"""Make a small synthetic corpus in the folder layout and file formats of IEMOCAP.

Every utterance is spoken by the espeak-ng synthesiser. The corpus lets the code
be run from end to end without the licensed recordings; no result got on it says
anything about human speech.

Run ``python data/demo/make_demo.py``, or with ``--out DIR --turns N`` for a
cut-down copy somewhere else.
"""

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile as sf
from scipy.signal import butter, resample_poly, sosfilt
from tqdm import tqdm

RATE = 16_000  # Hz, of the written audio
STEP = 8  # samples; 0.5 ms, so that four decimals give every time exactly
OPUS_LEVEL = 0.91  # soundfile compression level, about 30 kbit/s
HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
DIALOGUES = [("F", "impro01"), ("F", "script01_1"), ("M", "impro02"), ("M", "script02_1")]

# espeak-ng voice, base pitch (espeak points, 0 to 99) and rate (words per minute).
# British English is plain "en": espeak-ng 1.51 drops the variant after "en-gb".
SPEAKERS = {
    "Ses01F": ("en-us+f2", 52, 168),
    "Ses01M": ("en-us+m3", 38, 160),
    "Ses02F": ("en+f3", 40, 176),
    "Ses02M": ("en+m1", 44, 172),
    "Ses03F": ("en-gb-scotland+f4", 50, 160),
    "Ses03M": ("en-gb-scotland+m7", 34, 166),
    "Ses04F": ("en-us-nyc+f1", 44, 182),
    "Ses04M": ("en-us-nyc+m2", 44, 178),
    "Ses05F": ("en-gb-x-rp+f5", 46, 170),
    "Ses05M": ("en-gb-x-gbclan+m8", 36, 156),
}

NAMES = {
    "neu": "Neutral",
    "ang": "Anger",
    "sad": "Sadness",
    "hap": "Happiness",
    "exc": "Excited",
    "fru": "Frustration",
    "sur": "Surprise",
    "fea": "Fear",
    "dis": "Disgust",
    "oth": "Other",
}

# What a rater who does not hear the label may hear instead
CONFUSED = {
    "neu": ["fru", "sad", "hap", "oth"],
    "ang": ["fru", "neu", "dis"],
    "sad": ["neu", "fru", "oth"],
    "hap": ["exc", "neu", "oth"],
    "exc": ["hap", "neu", "sur"],
    "fru": ["ang", "neu", "sad", "oth"],
    "sur": ["exc", "neu", "fea"],
    "fea": ["sad", "sur", "neu"],
}

# Full-strength shift of a speaker's neutral voice: pitch and pitch range (espeak
# points), rate (fraction), level (dB), spectral tilt (dB per octave), breath
# (noise-to-voice amplitude ratio), drive (tanh gain, a harsher voice)
STYLES = {
    "neu": (0, 0, 0.00, 0, 0.0, 0.05, 0.0),
    "ang": (15, 24, 0.16, 8, 3.0, 0.00, 4.0),
    "sad": (-16, -40, -0.22, -8, -2.8, 0.80, 0.0),
    "hap": (24, 34, 0.04, 2, 0.2, 0.20, 0.0),
    "exc": (36, 48, 0.10, 4, 0.8, 0.10, 0.5),
    "fru": (2, 6, -0.06, 3, 1.2, 0.10, 1.2),
    "sur": (32, 50, 0.00, 3, 0.6, 0.15, 0.0),
    "fea": (22, -10, 0.18, -3, -0.6, 0.50, 0.0),
}
SPREAD = (6, 10, 0.08, 2.2, 0.8, 0.10, 0.4)  # standard deviations, same units

# Valence, activation and dominance at full strength, on the scale 1 to 5
VAD = {
    "neu": (3.0, 2.6, 3.0),
    "ang": (1.5, 4.2, 4.3),
    "sad": (1.8, 1.8, 2.0),
    "hap": (4.3, 3.2, 3.2),
    "exc": (4.4, 4.2, 3.6),
    "fru": (2.1, 3.1, 3.5),
    "sur": (3.3, 4.0, 3.0),
    "fea": (1.8, 3.8, 1.6),
}

COMMON = """I told you I would be there at three.|Did you talk to them about it?
The letter came in the mail this morning.|We have to fill in the form again.
I left my keys on the kitchen table.|She said that she would call tomorrow.
It has been almost two years now.|You know what they are going to say.
I was standing in line for an hour.|He works at the office on Main Street.
They moved the flight to Tuesday.|I don't know what else to tell you.
We are going to the beach tonight.|My brother is coming over for dinner.
Do you have your ticket with you?|That is what the man at the desk said.
I saw your mother at the store.|You can leave it by the door.
Are you going to tell her?|I think we should go home now.
The bags are still in the car.|He asked me the same thing yesterday.""".replace("\n", "|").split(
    "|"
)
TINTED = {
    "neu": [
        "The next window is over there.",
        "You need two forms of identification.",
        "It is on the second floor.",
        "I usually take the bus to work.",
    ],
    "ang": [
        "Get out of my house right now!",
        "Don't you ever talk to me like that!",
        "I am sick of your lies!",
        "How dare you do this to me!",
    ],
    "sad": [
        "I miss him so much.",
        "She is gone, and I never said goodbye.",
        "I can't believe we lost the baby.",
        "There is nothing left for me here.",
    ],
    "hap": [
        "That is so lovely to hear.",
        "I am really glad you came.",
        "It was such a beautiful day.",
        "This makes me smile.",
    ],
    "exc": [
        "Oh my god, I got in!",
        "We are getting married!",
        "I can't wait to see it!",
        "That is amazing news!",
    ],
    "fru": [
        "I have been through this ten times already.",
        "Nobody here can give me an answer.",
        "This machine never works.",
        "Why is it always my fault?",
    ],
    "sur": ["Wait, you did what?", "I had no idea at all!"],
    "fea": ["I think there is somebody outside.", "Please, don't leave me here."],
}
SHORT = ["Yes.", "No.", "What?", "Okay.", "I know.", "Why?", "Right.", "Sure.", "Really?"]


def plan_labels(rng, count):
    """Draw the native labels (list of str, random order) of a speaker's `count` turns."""
    # The fixed head gives every speaker every main class, also when cut down
    head = ["neu", "ang", "sad", "exc", "fru"] * 5
    more = {
        "neu": 0.28,
        "fru": 0.28,
        "ang": 0.09,
        "sad": 0.07,
        "hap": 0.10,
        "exc": 0.03,
        "xxx": 0.12,
        "sur": 0.018,
        "fea": 0.012,
    }
    tail = rng.choice(list(more), max(0, count - len(head)), p=list(more.values()))
    return [str(x) for x in rng.permutation(head[:count] + list(tail))]


def draw_votes(rng, label, strength):
    """Draw three raters' categories whose majority is the label.

    Parameters
    ----------
    rng : numpy.random.Generator
    label : str
        Native label id; ``xxx`` makes three raters who all differ.
    strength : float
        How strongly the emotion is expressed, 0 to 1.

    Returns
    -------
    acted : str
        Label id of the emotion to act.
    votes : list of list of str
        Label ids, one list per rater.
    """
    acted = str(rng.choice(["neu", "ang", "sad", "exc", "fru"])) if label == "xxx" else label
    other = [str(v) for v in rng.permutation(CONFUSED[acted])]
    votes = [[acted], [acted], [acted]]
    if label == "xxx":
        votes[1:] = [other[0]], [other[1]]
    elif rng.random() < 0.65 - 0.4 * strength:
        votes[2] = [other[0]]
    elif rng.random() < 0.2:  # a rater may name two; one such vote makes no tie
        votes[2].append(other[0])
    return acted, [votes[i] for i in rng.permutation(3)]


def draw_text(rng, emotion):
    """Draw the sentences of a turn (list of str); the emotion colours some of them."""
    kind = rng.random()
    if kind < 0.06:
        return [str(rng.choice(SHORT))]
    count = 4 if kind > 0.96 else 2 if kind > 0.92 else 1  # four run past 7 s
    first = TINTED[emotion] if rng.random() < 0.4 else COMMON
    return [str(t) for t in (rng.choice(first), *rng.choice(COMMON, count - 1, replace=False))]


def speak(text, voice, pitch, span, rate):
    """Speak a text with espeak-ng.

    Parameters
    ----------
    text : str
        SSML.
    voice : str
        Language and variant.
    pitch, span : float
        Pitch and pitch range in espeak points, 0 to 99.
    rate : float
        In words per minute.

    Returns
    -------
    numpy.ndarray
        Mono samples at `RATE` Hz, full scale 1, without the silence at the ends.
    """
    pitch, span = (int(np.clip(v, 0, 99)) for v in (pitch, span))
    run = subprocess.run(
        [
            "espeak-ng",
            "-m",
            "--stdout",
            "-v",
            voice,
            "-p",
            str(pitch),
            "-s",
            str(int(np.clip(rate, 90, 320))),
            f'<prosody range="{span}">{text}</prosody>',
        ],
        capture_output=True,
        check=True,
    )
    # A streamed WAV header holds no true length: skip its 44 bytes
    signal = np.frombuffer(run.stdout[44:], np.int16) / 32768
    signal = resample_poly(signal, 320, 441)  # 22 050 Hz to 16 000 Hz
    loud = np.flatnonzero(np.abs(signal) > 0.01 * np.abs(signal).max())
    return signal[loud[0] : loud[-1] + 1]


def rms(signal):
    """Root mean square of the parts above a hundredth of the peak (full scale 1)."""
    return np.sqrt(np.mean(signal[np.abs(signal) > 0.01 * np.abs(signal).max()] ** 2))


def tilt(signal, slope):
    """Turn the spectrum about 1 kHz by `slope` dB per octave, flat below 125 Hz."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(signal), 1 / RATE), 125) / 1000)
    return np.fft.irfft(np.fft.rfft(signal) * 10 ** (slope * octaves / 20), len(signal))


def colour(rng, signal, level, slope, breath, drive):
    """Give a voice its level (dB re full scale) and quality (units as in `STYLES`)."""
    signal = signal / rms(signal)
    if breath > 0:  # noise above 2 kHz that follows the loudness of the voice
        envelope = sosfilt(butter(1, 20, fs=RATE, output="sos"), np.abs(signal))
        noise = sosfilt(
            butter(2, 2000, "high", fs=RATE, output="sos"), rng.standard_normal(len(signal))
        )
        signal = signal + breath * envelope * noise
    if drive > 0:
        signal = np.tanh(0.3 * drive * signal)
    signal = tilt(signal, slope)
    return signal / rms(signal) * 10 ** (level / 20)


def act(rng, speaker, habit, room, emotion, strength):
    """Act one turn.

    Parameters
    ----------
    rng : numpy.random.Generator
    speaker : str
        Key of `SPEAKERS`.
    habit : numpy.ndarray
        The speaker's own offsets, in the units of `STYLES`, then one factor on
        all emotional shifts.
    room : dict
        ``gain`` (dB), ``slope`` and ``noise`` (spectral tilts, dB per octave).
    emotion : str
    strength : float
        0 to 1.

    Returns
    -------
    signal : numpy.ndarray
        Mono samples at `RATE` Hz, padded with noisy silence.
    text : str
    """
    voice, pitch0, rate0 = SPEAKERS[speaker]
    text = " ".join(draw_text(rng, emotion))
    pitch, span, rate, level, slope, breath, drive = (
        habit[:-1] + np.array(STYLES[emotion]) * habit[-1] * strength + rng.normal(0, SPREAD)
    )
    words = text.split()
    if len(words) > 5 and rng.random() < 0.2:  # a pause inside the turn
        pause = f'<break time="{rng.integers(300, 800)}ms"/>'
        words.insert(rng.integers(2, len(words) - 1), pause)
    signal = speak(" ".join(words), voice, pitch0 + pitch, 50 + span, rate0 * (1 + rate))
    signal = colour(rng, signal, -28 + level + room["gain"], slope + room["slope"], breath, drive)

    lead, trail = rng.uniform(0.05, 0.5, 2) if len(words) > 2 else rng.uniform(0.02, 0.1, 2)
    if rng.random() < 0.08:
        lead += rng.uniform(0.4, 0.9)
    signal = np.pad(signal, (int(lead * RATE), int(trail * RATE)))
    signal = np.pad(signal, (0, -len(signal) % STEP))
    noise = tilt(rng.standard_normal(len(signal)), room["noise"])
    snr = rng.uniform(14, 36)  # dB, speech over background
    noise *= rms(signal) / rms(noise) * 10 ** (-snr / 20)
    return np.clip(signal + noise, -0.99, 0.99), text


def format_turn(rng, times, turn, label, votes, acted, strength, raters):
    """Write the EmoEvaluation block (str) of one turn; `times` are in seconds."""
    me = turn.rsplit("_", 1)[1][0] + "1"  # the speaker rates the own turn
    lines = [
        f"C-{rater}:\t{' '.join(NAMES[v] + ';' for v in vote)}\t()"
        for rater, vote in zip(raters, votes, strict=True)
    ]
    remark = rng.choice(["", "", "", "curious", "mild", "unsure"])
    lines.append(f"C-{me}:\t{NAMES[acted]};\t({remark})")
    centre = np.array(VAD["neu"]) * (1 - strength) + np.array(VAD[acted]) * strength
    scores = np.clip(np.rint(rng.normal(centre, 0.5, (3, 3))), 1, 5).astype(int)
    lines += [
        f"A-{rater}:\tval {v}; act {a}; dom  {d};\t()"
        for rater, (v, a, d) in zip([*raters[1:], me], scores, strict=True)
    ]
    means = ", ".join(f"{m:.4f}" for m in scores[:2].mean(axis=0))  # without the speaker's
    return "\n".join([f"[{times[0]:.4f} - {times[1]:.4f}]\t{turn}\t{label}\t[{means}]", *lines, ""])


def make_dialogue(rng, name, root, order, cast, bar):
    """Make one dialogue: its two text files and its audio.

    Parameters
    ----------
    rng : numpy.random.Generator
    name : str
        Such as ``Ses01F_impro01``.
    root : pathlib.Path
        The session's folder.
    order : str
        Who speaks in each turn, such as ``FMFM``.
    cast : dict
        ``plans`` (labels still to be given, used up from the end) and ``habits``
        (see `act`), both by speaker letter; ``room`` (see `act`); ``raters``.
    bar : tqdm.tqdm

    Returns
    -------
    list of tuple
        Label and length in seconds of every turn.
    """
    whole = root.name == "Session5"  # this one comes as whole dialogues only
    audio = root / ("dialog/wav" if whole else f"sentences/wav/{name}")
    evaluation, script = root / "dialog/EmoEvaluation", root / "dialog/transcriptions"
    for folder in (audio, evaluation, script):
        folder.mkdir(parents=True, exist_ok=True)
    for old in audio.glob(f"{name}*.opus"):  # a longer earlier run must leave nothing
        old.unlink()

    blocks, lines, clips, made, number = [], [], [], [], Counter()
    now = int(rng.uniform(1, 4) * RATE) // STEP * STEP  # samples since the start
    for who in order:
        turn = f"{name}_{who}{number[who]:03d}"
        number[who] += 1
        label = cast["plans"][who].pop()
        # One turn in six is hardly acted
        strength = rng.uniform(0, 0.2) if rng.random() < 1 / 6 else rng.beta(4, 1.6)
        acted, votes = draw_votes(rng, label, strength)
        signal, text = act(rng, name[:5] + who, cast["habits"][who], cast["room"], acted, strength)
        start, end = now / RATE, (now + len(signal)) / RATE
        blocks.append(
            format_turn(rng, (start, end), turn, label, votes, acted, strength, cast["raters"])
        )
        lines.append(f"{turn} [{start:08.4f}-{end:08.4f}]: {text}")
        if rng.random() < 0.05:  # what the release has between the turns
            lines.append(f"{who}: [{rng.choice(['LAUGHTER', 'BREATHING', 'GARBAGE'])}]")
        elif rng.random() < 0.04:
            lines.append(f"{name}_{who}XX0 [{end:08.4f}-{end + 0.2:08.4f}]: Mmhmm.")
        clips.append((turn, now, signal))
        made.append((label, len(signal) / RATE))
        now += len(signal) + int(rng.uniform(0.25, 1.2) * RATE) // STEP * STEP
        bar.update()

    if whole:  # a faint floor, so that the pauses are not digital silence
        track = 10 ** (-62 / 20) * tilt(rng.standard_normal(now), cast["room"]["noise"])
        for _, start, signal in clips:
            track[start : start + len(signal)] = signal
        clips = [(name, 0, track)]
    for stem, _, signal in clips:
        sf.write(
            audio / f"{stem}.opus",
            signal,
            RATE,
            format="OGG",
            subtype="OPUS",
            compression_level=OPUS_LEVEL,
        )
    (evaluation / f"{name}.txt").write_text(HEADER + "\n".join(blocks) + "\n", newline="\n")
    (script / f"{name}.txt").write_text("\n".join(lines) + "\n", newline="\n")
    return made


def main():
    """Read the command line and make the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder to write to (default: this script's)",
    )
    parser.add_argument("--turns", type=int, default=24, help="turns per dialogue (default: 24)")
    parser.add_argument("--seed", type=int, default=7, help="(default: 7)")
    args = parser.parse_args()
    if args.turns < 1:
        parser.error("--turns must be at least 1")
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed. Install it with: apt install espeak-ng")
    if any(args.out.glob("Session*/*/wav/**/*.wav")):
        sys.exit(f"{args.out} holds .wav files, perhaps the true corpus: nothing is written there.")

    made = []
    with tqdm(total=5 * len(DIALOGUES) * args.turns, unit="turn") as bar:
        for session in range(1, 6):
            rng = np.random.default_rng([args.seed, session])
            # Man and woman start in turn, so that both have as many turns
            orders = [
                ("FMF"[i % 2 :][:2] * args.turns)[: args.turns] for i in range(len(DIALOGUES))
            ]
            count = {who: "".join(orders).count(who) for who in "FM"}
            cast = {
                "plans": {who: plan_labels(rng, count[who]) for who in "FM"},
                "habits": {
                    who: np.append(rng.normal(0, SPREAD) * 0.4, rng.uniform(0.75, 1.15))
                    for who in "FM"
                },
                "room": {
                    "gain": rng.uniform(-3, 3),
                    "slope": rng.uniform(-0.6, 0.6),
                    "noise": rng.uniform(-5, -2),
                },
                "raters": [f"E{k}" for k in sorted(rng.choice(4, 3, replace=False) + 1)],
            }
            for (marked, scene), order in zip(DIALOGUES, orders, strict=True):
                made += make_dialogue(
                    rng,
                    f"Ses{session:02d}{marked}_{scene}",
                    args.out / f"Session{session}",
                    order,
                    cast,
                    bar,
                )
    seconds = np.array([length for _, length in made])
    print(
        f"{len(made)} turns, {seconds.sum() / 60:.1f} min, "
        f"{(seconds > 7).sum()} over 7 s, {(seconds < 1).sum()} under 1 s"
    )
    print(dict(Counter(label for label, _ in made).most_common()))


if __name__ == "__main__":
    main()
