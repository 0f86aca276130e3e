"""A real Chromium for the tests of pages, and a server of pages on loopback.

`browser` is a fixture: a test file imports it. It skips where the machine has no Chromium with chromedriver.
"""

import functools
import shutil
import socket
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from limits import SOON, NeverWaiting

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "window-size=1300,1400")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Server(NeverWaiting, ThreadingHTTPServer):
    """A folder's pages."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.timeouts = {"pageLoad": 1000 * SOON, "script": 1000 * SOON}
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(2 * SOON)  # what selenium goes by when it waits for chromedriver; else it waits for ever
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    finally:
        socket.setdefaulttimeout(default)
    yield driver
    driver.quit()


def wait_until(driver, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, SOON, poll_frequency=0.02).until(lambda d: d.execute_script(script))


def element(driver, selector: str):
    return driver.find_element("css selector", selector)
