"""The page, in a real browser and against a running server; skipped where there is no Chromium."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from serving import Running

import unclip
import unclip.app.server.queue.batches as batches
from unclip.provenance import record_of

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is driven by selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver is installed"
)
WAIT = 60  # seconds for a tiny model's pictures, beside other tests


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,1000"):
        options.add_argument(argument)
    folder = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(5)
    driver.downloads = folder
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, server: Running) -> Iterator:
    """The page as one sees it first; in no test does a request leave the machine, or anything fail."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.address, "storageTypes": "all"})
    browser.get(server.address + "/")
    yield browser
    requests = [entry["message"] for entry in browser.get_log("performance")]
    sent = [one for one in requests if '"Network.requestWillBeSent"' in one]
    assert sent and all(f'"url":"{server.address}/' in one or '"url":"blob:' in one for one in sent)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def drawn(page, sheets: int) -> list:
    """The buttons of all pictures, once so many sheets of them are finished."""
    for _ in range(2 * WAIT):
        frames = page.find_elements("css selector", ".sheet .frame")
        there = len(page.find_elements("css selector", ".sheet"))
        if there == sheets and frames and all(frame.is_enabled() for frame in frames):
            return frames
        time.sleep(0.5)
    raise AssertionError(f"{there} sheets of {sheets}, {page.find_element('id', 'said').text}")


def asked(page, n: int = 2) -> list:
    field = page.find_element("name", "n")
    field.clear()
    field.send_keys(str(n))
    page.find_element("id", "prompt").send_keys("a cat")
    page.find_element("id", "draw").click()
    return drawn(page, 1)


def of_verb(page, verb: str):
    """The opened form of what a picture can be made into."""
    details = page.find_element("css selector", f'#viewer details[data-verb="{verb}"]')
    if details.get_attribute("open") is None:
        details.find_element("tag name", "summary").click()
    return details


def test_pictures_are_drawn_varied_and_painted_anew_and_are_there_after_a_reload(page):
    frames = asked(page)
    assert len(frames) == 2
    frames[0].click()
    of_verb(page, "vary").find_element("css selector", ".main").click()
    frames = drawn(page, 2)
    assert len(frames) == 6 and "Variations" in page.find_element("css selector", ".sheet h2").text
    frames[-1].click()
    form = of_verb(page, "inpaint")
    mask = page.find_element("id", "mask")
    brush = webdriver.ActionChains(page).move_to_element(mask).click_and_hold()
    brush.move_by_offset(40, 30).release().perform()
    form.find_element("css selector", ".main").click()
    assert len(drawn(page, 3)) == 8
    page.refresh()
    assert len(drawn(page, 3)) == 8  # the visit's pictures are the browser's


def drop(page, path: Path) -> None:
    """As a hand lets go of a file over the page."""
    page.execute_script(
        """const bytes = Uint8Array.from(atob(arguments[0]), (mark) => mark.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], arguments[1], {type: "image/png"}));
        const event = {dataTransfer, bubbles: true, cancelable: true};
        for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, event));""",
        base64.b64encode(path.read_bytes()).decode(),
        path.name,
    )


def value(page, name: str) -> str:
    return page.find_element("css selector", f"#ask [name={name}]").get_attribute("value")


def until(said) -> None:
    """Wait for what becomes true."""
    end = time.monotonic() + WAIT
    while not said():
        assert time.monotonic() < end
        time.sleep(0.05)


def downloaded(page) -> Path:
    """The opened picture's file, as the page lets one keep it."""
    page.find_element("css selector", "#viewer [data-do=download]").click()
    until(lambda: list(page.downloads.glob("*.png")))
    (path,) = page.downloads.glob("*.png")
    return path.rename(path.with_suffix(".kept"))


def test_a_path_leads_to_a_second_picture(page):
    asked(page)[0].click()
    form = of_verb(page, "interpolate")
    form.find_element("css selector", ".others label").click()
    form.find_element("css selector", ".main").click()
    frames = drawn(page, 2)
    assert len(frames) == 7 and page.find_element("css selector", ".sheet h2").text == "From a cat to a cat"
    page.find_elements("css selector", ".sheet .frame")[2].click()
    assert record_of(downloaded(page)).verb == "interpolate"


def test_a_picture_of_ours_fills_the_form_and_is_drawn_again(page, pipeline, tmp_path):
    """Dropped, drawn and downloaded it is the same picture, and says how it was made."""
    two = pipeline.generate("a fish \u2192 \u732b", n=2, seed=2**62 + 1, steps=3, guidance_scale=1.5)
    unclip.save(two[1], tmp_path / "fish.png")
    drop(page, tmp_path / "fish.png")
    until(lambda: value(page, "prompt"))
    assert "the form is filled in as it was drawn" in page.find_element("id", "said").text
    filled = {name: value(page, name) for name in ("prompt", "n", "seed", "steps", "guidance_scale")}
    assert filled == {"prompt": "a fish \u2192 \u732b", "n": "2", "seed": str(2**62 + 1), "steps": "3",
                      "guidance_scale": "1.5"}  # fmt: skip
    page.find_element("id", "draw").click()
    drawn(page, 2)[1].click()
    path = downloaded(page)
    made = record_of(path)
    assert (made.prompt, made.seed, made.k, made.n) == ("a fish \u2192 \u732b", 2**62 + 1, 1, 2)
    difference = ImageChops.difference(Image.open(path), two[1])
    assert max(high for _, high in difference.getextrema()) <= 1


def test_any_other_picture_offers_variations(page, tmp_path):
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "set.png")
    drop(page, tmp_path / "set.png")
    until(lambda: page.find_element("id", "viewer").is_displayed())
    assert value(page, "prompt") == "" and page.find_element("id", "viewed").text == "set"
    of_verb(page, "vary").find_element("css selector", ".main").click()
    assert len(drawn(page, 2)) == 5
    (tmp_path / "text.png").write_text("no picture")
    drop(page, tmp_path / "text.png")
    until(lambda: "no picture" in page.find_element("id", "said").text)


def test_the_place_in_the_queue_is_said(page, server, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(batches, "drawn", lambda *args, real=batches.drawn: gate.wait(WAIT) and real(*args))
    with ThreadPoolExecutor(2) as pool:
        ask = server.client.images.generate
        pool.submit(ask, prompt="first")
        until(lambda: server.house.batcher.busy)
        pool.submit(ask, prompt="second", extra_body={"guidance_scale": 1.5})
        until(lambda: server.house.batcher.waiting)
        page.find_element("id", "prompt").send_keys("a cat")
        page.find_element("id", "draw").click()
        until(lambda: page.find_element("css selector", ".sheet .facts").text == "Number 2 in line")
        gate.set()
    assert len(drawn(page, 1)) == 4
