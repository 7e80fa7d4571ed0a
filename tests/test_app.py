"""The app: every input is answered or refused in words, nothing of a visitor stays, and a real browser gets its answers."""

import gc
import os
import shutil
import signal as signals
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from urllib.parse import urlparse

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, harmonic_tone, make_predictions, make_utterances, noise, write_audio
from matplotlib.figure import Figure

from helpers import app, artifacts, audio, explain, features, nets, plots, predict, splits, tables
from helpers.artifacts import ClassicalPart, NetworkPart
from helpers.inputs import Input
from helpers.paths import PROJECT

EMOTIONS = ["neutral", "happy", "sad", "angry"]
PITCHES = [100, 150, 200, 250]  # Hz, of the emotions
ABOUT = {
    "model": "test",
    "emotions": EMOTIONS,
    "policy": "four",
    "corpus": "toy",
    "licence": "MIT",
    "protocol": [],
}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def voice(pitch: float, seconds: float = 1.5) -> np.ndarray:
    tone = harmonic_tone(pitch, seconds, 0.3) * np.abs(
        np.sin(np.arange(round(seconds * RATE)) / RATE * 9)
    ).astype(np.float32)
    return tone + noise(seconds, 0.002, round(pitch))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that tells low voices from high ones, in both variants."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = ["f0_st__p50", "f0_st__p95"]
    rows = [
        features.functionals(voice(pitch + 4 * shift)) for pitch in PITCHES for shift in range(4)
    ]
    values = np.array([[row[name] for name in columns] for row in rows], np.float32)
    inputs = {"inductive": values, "speaker-normalised": (values - values.mean(0)) / values.std(0)}
    classes = np.repeat(np.arange(4), 4)
    parts = {
        variant: ClassicalPart(
            make_pipeline(StandardScaler(), LogisticRegression(C=100)).fit(array, classes)
        )
        for variant, array in inputs.items()
    }
    about = ABOUT | {"traits": {"duration_s": [1.0, 4.0]}}
    return artifacts.save(
        tmp_path_factory.mktemp("models") / "pitch",
        parts,
        Input("functionals", {"columns": columns}),
        about,
        {"mean": values.mean(0).astype(float), "std": values.std(0).astype(float)},
    )


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = nets.MelCNN(4, (64, 128), (4, 4))
    part = NetworkPart(
        "MelCNN",
        {"channels": [4, 4]},
        (64, 128),
        {n: v.numpy() for n, v in net.state_dict().items()},
    )
    folder = tmp_path_factory.mktemp("models") / "cnn"
    return artifacts.save(folder, {"inductive": part}, Input("image", {"n_frames": 128}), ABOUT)


# --- where a model listens ---------------------------------------------------------------------------------------------


class LoudnessModel:
    """Says "angry" as far as the second of a clip from 1.0 s on is loud; counts how often it was asked."""

    emotions = EMOTIONS

    def __init__(self):
        self.calls = 0

    def probabilities(self, signals, enrolment=None):
        self.calls += 1
        loud = np.array(
            [np.sqrt(np.sum(s[RATE : round(1.5 * RATE)] ** 2) / RATE) for s in signals]
        ).clip(0, 0.5)
        return np.stack(
            [0.2 + 0 * loud, 0.8 * (0.5 - loud), 0.8 * (0.5 - loud), 1.6 * loud], axis=1
        )


def test_occlusion_finds_the_part_that_counts():
    model, clip = LoudnessModel(), harmonic_tone(150, 3.0, 0.6)
    found = explain.occlusion(model, clip, "angry")
    assert model.calls == 1, "one call for all parts"
    strongest = found.loc[found["fall"].idxmax()]
    assert strongest["fall"] > 0.05 and 1.0 <= strongest["start_s"] < strongest["end_s"] <= 1.5
    elsewhere = found[(found["end_s"] < 1.0) | (found["start_s"] > 1.5)]
    assert len(elsewhere) > 5 and elsewhere["fall"].abs().max() < 1e-6
    assert found["start_s"].iloc[0] == 0 and found["end_s"].iloc[-1] == pytest.approx(3.0)
    assert explain.occlusion(model, clip, "sad")["fall"].min() < -0.02, (
        "what spoke for angry spoke against sad"
    )


def test_occlusion_keeps_to_its_number_of_parts_and_to_the_mask():
    model = LoudnessModel()
    assert len(explain.occlusion(model, noise(60.0), "angry", n_most=10)) == 10
    short = explain.occlusion(model, noise(0.2), "angry")
    assert len(short) == 1 and short["end_s"].iloc[0] == pytest.approx(0.2)
    clip = harmonic_tone(150, 3.0, 0.6)
    p, alone = (
        model.probabilities([clip])[0],
        explain.occlusion(model, clip, "angry", only=("angry", "sad")),
    )
    kept = p[3] / (p[2] + p[3])
    assert (
        alone["fall"].max() > explain.occlusion(model, clip, "angry")["fall"].max() * 0.5
        and alone["fall"].max() < kept
    )
    for emotion, only in (("bored", ()), ("happy", ("angry", "sad"))):
        with pytest.raises(ValueError, match="none of the emotions to choose among"):
            explain.occlusion(model, clip, emotion, only=only)


# --- a clip ------------------------------------------------------------------------------------------------------------


def test_answer_is_that_of_predict_with_all_that_the_page_shows(tmp_path, model):
    path = write_audio(tmp_path / "clip.wav", voice(200))
    found = app.answer(path, model)
    assert not found.error and found.prediction == predict.predict(
        path, model, unsure_below=app.UNSURE_BELOW
    )
    assert (
        '<span class="ser-word">sad</span>' in found.words
        and "goes by this clip alone" in found.words
    )
    for emotion, colour in plots.colours(EMOTIONS).items():
        assert f"{emotion}</span>" in found.words and f"background:{colour}" in found.words
    assert (
        "occlusion" in found.picture
        and "not why" in found.picture
        and "data:image/png" in found.picture
    )
    assert "data:audio/wav" in found.words and path.is_file(), "a user's own file is left alone"
    again = app.answer((RATE, found.signal), model, look=False)
    assert again.prediction == found.prediction and "not why" not in again.picture


def test_unsure_mask_voice_and_warnings_are_shown(model):
    clip = (RATE, voice(200))
    unsure = app.answer(clip, model, unsure_below=1.01, look=False)
    assert (
        '<span class="ser-word">unsure</span>' in unsure.words
        and "The nearest is sad" in unsure.words
    )
    masked = app.answer(clip, model, only=("happy", "angry"), look=False)
    assert masked.prediction.emotion in ("happy", "angry") and "neutral" not in masked.words
    known = tuple((RATE, voice(p)) for p in (230, 260, 290, 320, 350, 380))
    enrolled = app.answer(clip, model, enrolment=known, look=False)
    assert (
        enrolled.prediction.variant == "speaker-normalised"
        and "compared this clip with 6 other" in enrolled.words
    )
    doubted = app.answer((RATE, voice(200, 6.0)), model, look=False)
    assert (
        "Reasons to doubt it" in doubted.words
        and "6.0 s long; training clips have 1.0 to 4.0" in doubted.words
    )
    assert "Reasons to doubt it" not in unsure.words


def test_networks_on_pictures_get_grad_cam_and_averages_the_curve(tmp_path, model, picture_model):
    quiet = np.zeros(RATE, np.float32)
    clip = (RATE, np.concatenate([quiet, voice(200, 1.0), quiet]))
    assert "Grad-CAM" in app.answer(clip, picture_model).picture
    opened = artifacts.load(picture_model)
    found = predict.predict(clip[1], opened, RATE)
    kind, glow, start_s = app._where(opened, clip[1], found, [], ())
    assert kind == "map" and start_s == pytest.approx(1.0, abs=0.05), (
        "the silence that was cut off is counted"
    )
    assert glow.shape == (64, pytest.approx(50, abs=3)) and glow.max() == 1
    average = artifacts.save_average(
        tmp_path / "average",
        {"pitch": model, "cnn": picture_model},
        {"inductive": {"pitch": 0.7, "cnn": 0.3}},
        {"inductive": 1.0},
        ABOUT,
    )
    assert "occlusion" in app.answer((RATE, voice(200, 0.5)), average).picture
    assert (
        "no speaker-normalised one"
        in app.answer(clip, average, enrolment=(clip,), look=False).words
    )


def test_wrong_input_is_refused_in_words(tmp_path, model):
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("this is no <b>audio</b>")
    empty.write_bytes(b"")
    long = write_audio(tmp_path / "long.wav", noise(61.0, 0.1))
    slow = tmp_path / "slow.wav"
    content = bytearray(write_audio(tmp_path / "clip.wav").read_bytes())
    content[24:28] = (3).to_bytes(
        4, "little"
    )  # a header that claims 3 Hz: resampled it would be hours
    slow.write_bytes(content)
    wrong = {
        None: "there is no recording",
        text: "can't be decoded",
        empty: "can't be decoded",
        tmp_path: "is not there",
        tmp_path / "none.wav": "is not there",
        long: "the page for long recordings",
        slow: "sampled at 3 Hz",
    }
    for given, said in wrong.items():
        found = app.answer(given, model)
        assert said in found.error and found == app.Answer(error=found.error), (given, found.error)
    nan = np.full(RATE, np.nan, np.float32)
    for samples, said in (
        (np.zeros(RATE, np.float32), "silent"),
        (nan, "NaN"),
        (np.array(["a"]), "of type"),
        (np.zeros((5, 5, 5)), "shape"),
        ([], "0.00 s long"),
    ):
        assert said in app.answer((RATE, samples), model).error
    assert "need their sampling rate" in app.answer((0, voice(100)), model).error
    assert "does not know bored" in app.answer((RATE, voice(100)), model, only=("bored",)).error
    assert "can't be decoded" in app.answer((RATE, voice(100)), model, enrolment=(text,)).error
    assert "holds no card.json" in app.answer((RATE, voice(100)), tmp_path).error
    assert "can't be decoded" in app.answer_long(text, model).error
    shown = app._shown(app.Answer(error="<script> is no emotion"))
    assert "&lt;script&gt;" in shown and "<script>" not in shown


def test_too_large_files_are_refused_before_they_are_decoded(tmp_path, model, monkeypatch):
    path = write_audio(tmp_path / "clip.wav", voice(100))
    monkeypatch.setattr(audio, "load", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(app, "LARGEST_UPLOAD", 1000)
    assert "expected at most" in app.answer(path, model).error
    monkeypatch.setattr(app, "LARGEST_UPLOAD", 2**20)
    monkeypatch.setattr(predict, "LARGEST_DECODED", 1000)
    assert "GB of memory" in app.answer(path, model).error


def test_a_damaged_model_is_refused_in_words(tmp_path, model):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "inductive.skops").write_bytes(b"other")
    assert "refused" in app.answer((RATE, voice(100)), broken).error
    with pytest.raises(artifacts.Refused):
        app.build(broken)
    with pytest.raises(FileNotFoundError, match="no model nothing"):
        app.build("nothing")


def test_nothing_of_a_visitor_stays(tmp_path, model):
    upload = Path(app._private_folder()) / "abc"
    assert os.stat(upload.parent).st_mode & 0o077 == 0, "others on this machine can't read it"
    for name, content in (
        ("a.wav", write_audio(tmp_path / "a.wav", voice(150)).read_bytes()),
        ("b.wav", b"no audio"),
    ):
        for function in (app.answer, app.answer_long):
            upload.mkdir(exist_ok=True)
            (upload / name).write_bytes(content)
            found = function(upload / name, model)
            assert bool(found.error) == (name == "b.wav") and not any(
                p.is_file() for p in upload.parent.rglob("*")
            )
    assert "somebody sent the same" in app.answer(upload / "a.wav", model).error


def test_figures_do_not_pile_up(model, monkeypatch):
    made, before = [], plt.get_fignums()

    def figure(*given, **options) -> Figure:
        new = Figure(*given, **options)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(app, "Figure", figure)
    for look in (False, True):
        app.answer((RATE, voice(150, 0.5)), model, look=look)
    gc.collect()
    assert plt.get_fignums() == before and [each() for each in made] == [None, None]


# --- a long recording, mistakes, models --------------------------------------------------------------------------------


@pytest.fixture
def by_energy(monkeypatch):
    """Tones are no speech to a trained detector."""
    monkeypatch.setattr(
        audio,
        "voice_activity",
        lambda signal, _method, real=audio.voice_activity: real(signal, "energy"),
    )


def test_long_recordings_get_a_timeline_and_verdicts(model, by_energy):
    call = np.concatenate([voice(100, 6.0), noise(8.0, 0.0005, 5), voice(250, 8.0)])
    found = app.answer_long((RATE, call), model)
    assert (
        not found.error
        and found.windows["emotion"].iloc[0] == "neutral"
        and found.windows["emotion"].iloc[-1] == "angry"
    )
    assert set(found.verdicts) == {"emotions", "satisfaction"}
    assert sum(found.verdicts["satisfaction"].values()) == pytest.approx(1)
    assert '<span class="ser-word">angry</span>' in found.words and "unsatisfied" in found.words
    assert "data:image/png" in found.picture
    table = app._timeline_table(found.windows)
    assert list(table["from"])[:2] == ["0:00", "0:02"] and table["to"].iloc[-1] == "0:22"
    masked = app.answer_long((RATE, call), model, only=("sad", "angry"), unsure_below=1.01)
    assert list(masked.verdicts) == ["emotions"], "nobody could be satisfied"
    assert '<span class="ser-word">unsure</span>' in masked.words
    nobody = app.answer_long(
        (RATE, np.concatenate([voice(100, 0.1), np.zeros(5 * RATE, np.float32)])), model
    )
    assert not nobody.error and "Nobody seems to speak" in nobody.words


def test_times_are_read_as_clocks():
    assert [app._clock(s) for s in (0, 59.6, 61, 3600, 7325)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
    ]


@pytest.fixture
def toy(tmp_path, private_work):
    """Saved predictions of a small corpus, and one of its recordings."""
    utterances = make_utterances(6)
    folds = splits.make_folds(utterances, n_folds=3)
    rows = make_predictions(folds, skill=1.0)
    place = private_work / "toy/four/predictions/guesser.parquet"
    tables.write_table(rows, place, "predictions")
    return utterances, rows, place


def test_mistakes_are_the_surest_wrong_test_clips(toy):
    _, rows, place = toy
    found = app.mistakes(place, n_most=5)
    test = rows[rows["role"] == "test"]
    values = test[[f"p_{e}" for e in sorted(EMOTIONS)]].to_numpy()
    wrong = np.array(sorted(EMOTIONS))[values.argmax(1)] != test["truth"].to_numpy()
    assert len(found) == 5 and (found["guess"] != found["truth"]).all()
    assert found["probability"].tolist() == pytest.approx(
        sorted(values.max(1)[wrong], reverse=True)[:5]
    )
    assert "toy / four / guesser (own run)" in app._saved_predictions()


def test_mistakes_can_be_heard_where_the_corpus_is_and_say_how_where_not(
    tmp_path, private_work, toy
):
    utterances, _, place = toy
    worst = app.mistakes(place).iloc[0]
    absent = app.show_mistake(worst)
    assert (
        "are not on this machine" in absent
        and "--corpus toy --only 01,02" in absent
        and "<audio" not in absent
    )
    clip = write_audio(tmp_path / "clip.wav")
    spoken = utterances.assign(path=str(clip), text="<i>Hello</i>").drop(columns="emotion")
    tables.write_table(spoken, private_work / "toy/utterances.parquet", "utterances")
    there = app.show_mistake(worst)
    assert "<audio" in there and "data:image/png" in there and "&lt;i&gt;Hello" in there
    assert (
        f"{worst['truth']} <em>meant</em>" in there
        and f"{worst['guess']} <em>answered</em>" in there
    )
    clip.unlink()
    assert "are not on this machine" in app.show_mistake(worst)


def test_models_at_hand_and_their_cards_in_words(tmp_path, private_work, model):
    import json

    (private_work / "toy/four/models").mkdir(parents=True)
    own = private_work / "toy/four/models/pitch"
    shutil.copytree(model, own)
    assert app.available()["toy / four / pitch"] == own
    words = app.about(own)
    for said in (
        "toy",
        "`four`",
        "MIT",
        "neutral, happy, sad, angry",
        "speaker-normalised",
        "statistics of the whole clip",
        "holds no results",
    ):
        assert said in words
    published = json.loads(
        (PROJECT / "data/results/ravdess/ravdess-8/cards.json").read_text(encoding="utf-8")
    )
    card = json.loads((own / "card.json").read_text()) | {
        "protocol": [published[0], {"model": "half a card"}]
    }
    (own / "card.json").write_text(json.dumps(card))
    words = app.about(own)
    assert (
        f"UAR {100 * published[0]['results']['uar']:.1f} %" in words and "chance is 25.0%" in words
    )
    assert "can't be read" in words and "holds no results" not in words


# --- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory, model):
    """The app as a user starts it. It takes a while, so it starts with the first test; what follows waits for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, work = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("work")
    environment = os.environ | {
        "TMPDIR": str(folder),
        "SER_WORK": str(work),
        "OMP_NUM_THREADS": "1",
    }  # beside the tests
    command = [sys.executable, "-m", "helpers.app", "--model", str(model), "--port", str(port)]
    with open(work / "server.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    yield process, port, folder, work / "server.log"
    process.send_signal(signals.SIGTERM)
    process.wait(20)
    assert not list(folder.glob("ser-app-*")), "its folder goes with it"


@pytest.fixture(scope="module")
def server(started) -> tuple[str, Path]:
    """Its address, and the folder that temporary files go to."""
    process, port, folder, log = started
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, (line, log.read_text()[-3000:])
    return line.split()[0], folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed"
    ).sync_playwright
    spoken = write_audio(tmp_path_factory.mktemp("microphone") / "voice.wav", voice(250, 8.0))
    switches = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
    ]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield started
        started.close()


@pytest.fixture
def page(server, browser):
    """The opened page. At the end: nothing came from elsewhere, no script failed, no recording is left."""
    address, folder = server
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["microphone"]
    )
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    addresses, faults = [], []
    opened.on("request", lambda request: addresses.append(request.url))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#ser-clip input[type=file]", state="attached")
    yield opened
    context.close()
    hosts = {urlparse(url).hostname for url in addresses if not url.startswith(("data:", "blob:"))}
    assert (hosts, faults) == ({"127.0.0.1"}, [])
    deadline = time.monotonic() + 5
    while (left := [p for p in folder.rglob("*") if p.is_file()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def bars(page, place: str) -> dict[str, str]:
    names, values = (
        page.locator(f"{place} .{part}").all_inner_texts() for part in ("ser-name", "ser-value")
    )
    return dict(zip(names, values, strict=True))


def shows(page, place: str, *texts: str) -> None:
    """Wait until a place says all this; while it is drawn anew it may be gone for a moment."""
    page.wait_for_function(
        "([place, texts]) => { const said = document.querySelector(place)?.innerText ?? ''; "
        "return texts.every(text => said.includes(text)); }",
        arg=[place, texts],
    )


def test_browser_upload_settings_and_voice(page, tmp_path):
    page.set_input_files(
        "#ser-clip input[type=file]", write_audio(tmp_path / "clip.wav", voice(200))
    )
    shows(page, "#ser-picture", "not why")
    assert page.inner_text("#ser-answer .ser-word") == "sad"
    shown = bars(page, "#ser-answer")
    assert (
        list(shown) == EMOTIONS
        and 99 <= sum(int(value.rstrip("%")) for value in shown.values()) <= 101
    )
    width = (
        page.locator("#ser-answer .ser-track span")
        .nth(2)
        .evaluate("bar => bar.offsetWidth / bar.parentNode.offsetWidth")
    )
    assert 100 * width == pytest.approx(int(shown["sad"].rstrip("%")), abs=2)
    page.get_by_text("Choose among some emotions").click()
    page.locator("#ser-only").get_by_text("happy").click()
    shows(page, "#ser-answer .ser-word", "happy")
    assert bars(page, "#ser-answer") == {"happy": "100%"}, "although the file is gone"
    page.locator("#ser-only").get_by_text("happy").click()
    page.get_by_text("Let it know the voice").click()
    for n, pitch in enumerate((260, 320, 380), start=1):
        page.set_input_files(
            "#ser-voice input[type=file]", write_audio(tmp_path / f"{pitch}.wav", voice(pitch))
        )
        shows(page, "#ser-answer", f"with {n} other(s)")
    assert "3 recording(s) of this voice" in page.inner_text("#ser-enrolled")
    page.get_by_role("tab", name="The model").click()
    shows(page, "#ser-card", "neutral, happy, sad, angry")


def test_browser_microphone(page):
    page.locator("#ser-microphone").get_by_role("button", name="Record").click()
    page.wait_for_timeout(2000)
    page.locator("#ser-microphone").get_by_role("button", name="Stop").first.click()
    page.wait_for_selector("#ser-answer .ser-word")
    assert (
        page.inner_text("#ser-answer .ser-word") == "angry"
        and list(bars(page, "#ser-answer")) == EMOTIONS
    )


def test_browser_says_what_is_wrong_and_goes_on(page, tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    page.set_input_files("#ser-clip input[type=file]", tmp_path / "text.wav")
    page.wait_for_selector("#ser-answer .ser-error")
    assert "text.wav can't be decoded" in page.inner_text("#ser-answer")
    page.wait_for_selector("#ser-clip input[type=file]", state="attached")
    page.set_input_files(
        "#ser-clip input[type=file]", write_audio(tmp_path / "clip.wav", voice(150))
    )
    page.wait_for_selector("#ser-answer .ser-word")
    assert (
        page.inner_text("#ser-answer .ser-word") == "happy"
        and not page.locator("#ser-answer .ser-error").count()
    )


def test_browser_timeline_and_mistakes(page, tmp_path):
    spoken = sorted((PROJECT / "data/demo").glob("Session1/sentences/wav/*/*.opus"))[:4]
    call = np.concatenate(
        [np.concatenate([audio.load(path), np.zeros(RATE, np.float32)]) for path in spoken]
    )
    page.get_by_role("tab", name="A long recording").click()
    page.set_input_files("#ser-call input[type=file]", write_audio(tmp_path / "call.flac", call))
    page.wait_for_selector("#ser-verdict .ser-word")
    assert list(bars(page, "#ser-verdict")) == [*EMOTIONS, "satisfied", "unsatisfied"]
    page.wait_for_selector("#ser-timeline img")
    shows(page, "#ser-windows", "from", "0:00", "0:04", "0:06")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "nothing sticks out on a phone"
    )
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name="Confident mistakes").click()
    page.wait_for_selector("#ser-mistake .ser-word")
    assert "are not on this machine" in page.inner_text("#ser-mistake"), (
        "the server has an empty work folder"
    )
    first = page.inner_text("#ser-mistake")
    page.locator("#ser-mistakes label").nth(1).click()
    page.wait_for_function(
        "first => (document.querySelector('#ser-mistake')?.innerText ?? first) != first", arg=first
    )


def test_command_says_what_it_needs(tmp_path, capsys, model):
    assert (
        app.main(["--model", str(tmp_path)]) == 2
        and "it holds card.json" in capsys.readouterr().err
    )
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert (
            app.main(["--model", str(model), "--port", port]) == 2
            and port in capsys.readouterr().err
        )


def test_launch_returns_at_once_and_listens_here_alone(model):
    page = app.launch(model)
    try:
        assert (
            page.local_url.startswith("http://127.0.0.1:")
            and not page.share
            and page.share_url is None
        )
        assert not page.analytics_enabled and page.max_file_size == app.LARGEST_UPLOAD
        host, port = urlparse(page.local_url).hostname, urlparse(page.local_url).port
        known = {
            found[4][0] for found in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)
        }
        for other in (address for address in known if not address.startswith("127")):
            with socket.socket() as outside, pytest.raises(OSError):
                outside.settimeout(1)
                outside.connect((other, port))
        with socket.socket() as inside:
            inside.connect((host, port))
    finally:
        page.close()


def test_signal_of_a_player_is_the_clip():
    import base64
    import io

    content = base64.b64decode(app._player(voice(100)).split("base64,")[1].split('"')[0])
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == RATE and np.abs(samples - voice(100)).max() < 1e-4
