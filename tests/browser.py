"""A page in a real browser: what a visitor types, clicks and sees."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from PIL import Image
from scripts import ROOT
from torchvision.transforms.functional import pil_to_tensor

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None or shutil.which("chromedriver") is None, reason="no chromium here")
FLAGS = """--headless=new --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic --no-first-run
 --disable-background-networking --disable-component-update --disable-sync"""
PATIENCE = 60  # seconds
SCALE = 5  # of the page's pictures


class Server:
    """A lesson's playground in a process of its own, from start to `stop`."""

    def __init__(self, lesson, *flags):
        command = [sys.executable, "-u", ROOT / lesson / "playground.py", "--pretrained", "mnist", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.printed = []
        for line in self.process.stdout:
            self.printed.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.address = found[0]
                return
        raise AssertionError("".join(self.printed))

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()


class Visitor:
    """A browser window of its own on a page."""

    def __init__(self, address, width=1200, height=1300, theme="light"):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.get(f"{address}/?__theme={theme}")

    def all(self, selector):
        """The visible elements of a CSS selector, or of an XPath."""
        from selenium.common.exceptions import StaleElementReferenceException as Stale

        by = "xpath" if selector.startswith("//") else "css selector"
        try:
            return [found for found in self.driver.find_elements(by, selector) if found.is_displayed()]
        except Stale:  # the page changed in between
            return []

    def wait(self, condition):
        """condition(), once that is true."""
        end = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < end, f"{condition} is not true after {PATIENCE} s"
            time.sleep(0.05)
        return result

    def one(self, selector):
        return self.wait(lambda: self.all(selector))[0]

    def labelled(self, label):
        """The field of a label."""
        text = f'//label[normalize-space(.//span)="{label}"]//textarea'
        return self.one(f'{text} | //*[@aria-label="{label}" or @aria-label="number input for {label}"]')

    def press(self, text):
        """The visible button of a text, a tab's or another."""
        self.wait(lambda: [button for button in self.all("button") if button.text.strip() == text])[-1].click()

    def write(self, label, text):
        from selenium.webdriver.common.keys import Keys

        def typed():  # a page that is still being built may swallow a key
            field = self.labelled(label)
            field.send_keys(Keys.CONTROL + "a" + Keys.NULL, Keys.BACKSPACE, str(text))
            return field.get_attribute("value") == str(text)

        self.wait(typed)
        self.labelled(label).send_keys(Keys.ENTER)

    def address_of(self, picture):
        """The address of the picture with some alt text, or None."""
        images = self.all(f'img[alt="{picture}"]')
        return images[0].get_attribute("src") if images else None

    def images(self, picture, columns):
        """The images of a picture, (B, C, 28, 28) in [0, 1]."""
        with urllib.request.urlopen(self.wait(lambda: self.address_of(picture))) as answer:
            pixels = (
                pil_to_tensor(Image.open(io.BytesIO(answer.read())).convert("L")).float()[:, ::SCALE, ::SCALE] / 255
            )
        size = pixels.shape[-1] // columns
        cells = pixels.unfold(1, size, size).unfold(2, size, size).reshape(-1, 1, size, size)
        return cells[:, :, 1:-1, 1:-1]

    def messages(self):
        return [message.text for message in self.all(".toast-body")]

    def requests(self):
        """The addresses asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def drag(self, element, points):
        """The mouse pressed and moved along points from the middle of an element."""
        from selenium.webdriver import ActionChains

        actions = ActionChains(self.driver).move_to_element_with_offset(element, *points[0]).click_and_hold()
        for (x, y), (x_next, y_next) in zip(points, points[1:]):
            actions.move_by_offset(x_next - x, y_next - y)
        actions.release().perform()

    def is_as_wide_as_its_window(self):
        return self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    def leave(self):
        self.driver.quit()
