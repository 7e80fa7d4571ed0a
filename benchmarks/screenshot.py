"""Takes figures/app.png: the app in Chromium, with the answer to a clip.

Run ``python benchmarks/screenshot.py CLIP [--model DIR] [--to figures/app.png]``. Needs Chromium, and playwright
(``pip install --group test``).
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import app
from helpers.paths import PROJECT

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("clip", type=Path, help="a recording of up to a minute")
parser.add_argument("--model", default="", help="folder of a model, or its name in data/models")
parser.add_argument("--to", type=Path, default=PROJECT / "figures/app.png")
options = parser.parse_args()

server = app.launch(options.model)
with sync_playwright() as playwright:
    chromium = playwright.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
    )
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(server.local_url)
    page.set_input_files("#ser-clip input[type=file]", options.clip)
    page.wait_for_function("document.querySelector('#ser-picture')?.innerText.includes('not why')")
    page.wait_for_timeout(1000)  # for what fades in
    page.screenshot(path=options.to, full_page=True)
    chromium.close()
server.close()
