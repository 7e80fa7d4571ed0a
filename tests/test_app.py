"""The app: its pages answer as ``predict`` does, show what is wrong, and work in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import gradio as gr
import numpy as np
import pytest
from conftest import RATE, noise, write_audio
from test_predict import EMOTIONS, model, voice  # noqa: F401, a fixture

import app
from helpers import artifacts, audio, predict
from helpers.paths import PROJECT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def loaded(model):  # noqa: F811
    return artifacts.load(model)


@pytest.fixture
def clip(tmp_path):
    return str(write_audio(tmp_path / "clip.wav", voice(212)))


@pytest.fixture
def by_energy(monkeypatch):
    """Tones are no speech to a trained detector."""
    detect = audio.voice_activity
    monkeypatch.setattr(audio, "voice_activity", lambda signal, _method: detect(signal, "energy"))


def test_a_clip_is_answered_as_by_predict(loaded, clip, tmp_path):
    shares, text = app.recognise(loaded, clip)
    assert shares == predict.predict(clip, loaded).probabilities and "inductive" in text
    assert "Unsure" not in text and "Unlike" not in text and Path(clip).is_file()
    shares, text = app.recognise(loaded, clip, only=["happy", "angry"], unsure_below=1.01)
    assert list(shares) == ["happy", "angry"] and sum(shares.values()) == pytest.approx(1)
    assert "**Unsure**: no emotion has a probability of at least 101%" in text
    known = []
    for pitch in (260, 320, 380):
        known.append(str(write_audio(tmp_path / f"{pitch}.wav", voice(pitch))))
    assert "speaker-normalised" in app.recognise(loaded, clip, known)[1]


def test_warnings_are_shown(loaded, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    long = write_audio(tmp_path / "long.wav", voice(200, 6.0))
    said = "Warning: 6.0 s long; training clips have 1.0 to 4.0."
    assert said in app.recognise(loaded, str(long))[1] and said in shown


def test_enrolment_is_of_no_use_to_an_inductive_model(model, loaded, clip, tmp_path):  # noqa: F811
    weights = {"inductive": {"pitch": 1.0}}
    about = {"model": "average"}
    folder = tmp_path / "average"
    artifacts.save_average(folder, {"pitch": model}, weights, {"inductive": 1.0}, about)
    average = artifacts.load(folder)
    assert "has no speaker-normalised variant" in app.recognise(average, clip, [clip])[1]
    said = app.describe(average)
    assert "A weighted average of 1 models" in said and "weight 1.00 (inductive)" in said


@pytest.mark.parametrize("page", [app.recognise, app.follow])
def test_wrong_input_is_refused_in_words(loaded, clip, tmp_path, page):
    (tmp_path / "text.wav").write_text("this is no audio")
    for given, said in (
        (None, "There is no recording"),
        (str(tmp_path / "text.wav"), "text.wav can't be decoded"),
        (str(tmp_path / "gone.wav"), "gone.wav is not there"),
        (str(write_audio(tmp_path / "quiet.wav", np.zeros(RATE, np.float32))), "is silent"),
    ):
        with pytest.raises(gr.Error, match=said):
            page(loaded, given)
    with pytest.raises(gr.Error, match=r"text\.wav can't be decoded"):
        page(loaded, clip, [str(tmp_path / "text.wav")])


def test_a_long_recording_gets_a_timeline_and_shares(loaded, tmp_path, by_energy):
    call = np.concatenate([voice(100, 6.0), noise(8.0, 0.0005, 5), voice(250, 8.0)])
    path = str(write_audio(tmp_path / "call.wav", call))
    figure, shares, groups, text = app.follow(loaded, path)
    assert next(iter(shares)) == "angry" and sum(shares.values()) == pytest.approx(1)
    assert set(groups) == {"satisfied", "unsatisfied"} and "windows of 4 s" in text
    assert len(figure.axes) == 1 and len(figure.axes[0].containers) == 4
    assert app.follow(loaded, path, only=["sad", "angry"])[2] == {}, "nobody could be satisfied"
    quiet = np.concatenate([voice(100, 0.1), np.zeros(5 * RATE, np.float32)])
    silent = app.follow(loaded, str(write_audio(tmp_path / "quiet.wav", quiet)))
    assert silent == (None, {}, {}, "Nobody seems to speak in this recording.")


def test_the_card_is_shown_in_words():
    said = app.describe(artifacts.load(predict.find_model("ravdess-8")))
    card = json.loads((PROJECT / "data/models/ravdess-8/card.json").read_text("utf-8"))
    for text in (
        "average_small",
        "A weighted average of 3 models",
        "ml_channel_normalised** reads statistics of low-level descriptors over the clip (channel",
        "`ravdess-8`",
        "CC BY-NC-SA 4.0",
        "chance is 12.5%",
        f"| inductive | {100 * card['results'][0]['uar']:.1f} % [",
    ):
        assert text in said


def test_the_card_of_a_single_model_is_shown_in_words(loaded):
    said = app.describe(loaded)
    assert "It reads statistics of low-level descriptors over the clip." in said
    assert "neutral, happy, sad, angry" in said and "`four`" in said


def test_command_says_what_it_needs(tmp_path, capsys, model):  # noqa: F811
    assert app.main(["--model", str(tmp_path)]) == 2
    assert "it holds no card.json" in capsys.readouterr().err
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert app.main(["--model", str(model), "--port", port]) == 2
        assert port in capsys.readouterr().err


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path, model):  # noqa: F811
    """The app as a user starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    command = [sys.executable, "-u", "app.py", "--model", str(model), "--port", port]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    line = next((line for line in server.stdout if port in line), "")
    assert line, (tmp_path / "server.log").read_text()[-3000:]
    yield f"http://127.0.0.1:{port}"
    server.terminate()  # an interrupt is ignored by what was started in the background
    server.wait(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_gets_its_answers(address, clip, tmp_path):
    reason = "playwright is not installed: pip install playwright"
    sync_playwright = pytest.importorskip("playwright.sync_api", reason=reason).sync_playwright
    (tmp_path / "text.wav").write_text("this is no audio")
    hosts, faults = set(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.set_input_files("#clip input[type=file]", clip)
        page.wait_for_selector("#clip audio", state="attached")
        page.click("#recognise")
        page.wait_for_function("document.querySelector('#answer')?.innerText.includes('sad')")
        assert "inductive" in page.inner_text("#notes")
        page.get_by_text("Other clips of the same speaker").first.click()
        page.set_input_files(".enrolment input[type=file]", clip)
        page.wait_for_selector(".enrolment [aria-label='clip.wav']")  # the upload is complete
        page.click("#recognise")
        page.wait_for_function("document.querySelector('#notes').innerText.includes('speaker-')")
        page.get_by_role("tab", name="A long recording").click()
        page.set_input_files("#recording input[type=file]", tmp_path / "text.wav")
        page.wait_for_selector("#recording audio", state="attached")
        page.click("#follow")
        page.get_by_text("text.wav can't be decoded").wait_for()
        page.get_by_role("tab", name="The model").click()
        page.wait_for_selector("#card")
        assert ", ".join(EMOTIONS) in page.inner_text("#card")
        browser.close()
    assert hosts <= {"127.0.0.1", None, ""} and not faults
