"""The page, in a real browser and against a running server; skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest
from serving import Running

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is driven by selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver is installed"
)
WAIT = 60  # seconds for a tiny model's pictures, beside other tests


@pytest.fixture
def page(server: Running) -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(5)
    driver.get(server.address + "/")
    yield driver
    driver.quit()


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


def test_nothing_leaves_the_machine_and_nothing_fails(page, server):
    asked(page, 1)
    requests = [entry["message"] for entry in page.get_log("performance")]
    sent = [one for one in requests if '"Network.requestWillBeSent"' in one]
    assert sent and all(f'"url":"{server.address}/' in one or '"url":"blob:' in one for one in sent)
    assert not [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
