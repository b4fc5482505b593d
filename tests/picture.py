"""`python -m tests.picture FILE`.

The Temporal UI's page of an apply that waits for approval, in Debian's Chromium, as a picture for the README.
`shown` is what a test reads of it.
"""

import shutil
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from qmtl_sdk.contracts.applies import ApprovalBody
from temporal.shutdown import exit_process
from tests.support.machine import Machine
from tests.support.scenarios import ApplyScenario

LIMIT_S = 60.0


def shown(url: str, wanted: tuple[str, ...], picture: Path | None = None) -> str:
    """The text of the page once it has everything that is wanted; with `picture`, kept as PNG.

    Fails after a minute with what it has.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1500,870",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.get(url)
        deadline = time.monotonic() + LIMIT_S
        while not (tabs := driver.find_elements(By.XPATH, "//*[normalize-space(text())='User Metadata']")):
            assert time.monotonic() < deadline, "the page has no User Metadata"
            time.sleep(0.2)
        driver.execute_script("arguments[0].click()", tabs[0])  # where current details stand
        while True:
            text = "\n".join(texts(driver))
            if all(word in text for word in wanted):
                break
            assert time.monotonic() < deadline, (
                f"the page lacks {[word for word in wanted if word not in text]}: {text[-2500:]}"
            )
            time.sleep(0.2)
        # The box of the details shows some five lines; the picture shall have them all.
        driver.execute_script(
            "document.querySelectorAll('iframe').forEach(e => { e.style.height = '430px'; "
            "e.style.maxHeight = 'none'; e.parentElement.style.maxHeight = 'none'; })"
        )
        driver.execute_script(
            "document.querySelectorAll('iframe').forEach(e => "
            "{ if (e.offsetHeight > 0) e.scrollIntoView({block: 'end'}); })"
        )
        time.sleep(0.5)
        if picture is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(driver.get_screenshot_as_png())
        return str(text)
    finally:
        driver.quit()


def texts(driver: Any) -> list[str]:
    """Of the page and of each frame in it: details are rendered in frames. (Any: selenium's driver.)"""
    from selenium.webdriver.common.by import By

    found = [driver.find_element(By.TAG_NAME, "body").text]
    for frame in driver.find_elements(By.TAG_NAME, "iframe"):
        driver.switch_to.frame(frame)
        found.append(driver.find_element(By.TAG_NAME, "body").text)
        driver.switch_to.default_content()
    return found


def main(picture: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        try:
            machine.up()
            stage = ApplyScenario(machine, "us-equities")
            try:
                assert stage.promote("dryrun", stage.ana).outcome == "completed"
                run = stage.ask(
                    "live", run_id=f"to-live-{uuid.uuid4().hex[:4]}", reason="thirty good days in dryrun"
                ).run_id
                stage.at(run, "approval")
                stage.ana.approve(stage.world, run, ApprovalBody(reason="the figures hold"), live=True)
                url = f"{machine.server.ui_url}/namespaces/default/workflows/apply:{stage.world}"
                print(
                    shown(
                        url,
                        ("waits for 1 more approval", "ana: approve", "paper at", "live at", "freeze"),
                        picture,
                    )
                )
                stage.client.abort(stage.world, run)
            finally:
                stage.close()
        finally:
            machine.close()
    return 0


if __name__ == "__main__":
    exit_process(main(Path(sys.argv[1])))
