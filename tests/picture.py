"""`python -m tests.picture FOLDER`: take the README's pictures in Debian's Chromium.

`report.png` is the top of the demo's report, `apply.png` the Temporal UI's page of an apply that waits for
approval.
"""

import os
import shutil
import subprocess
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


def take_apply(url: str, wanted: tuple[str, ...], picture: Path) -> None:
    """Take a picture of a workflow's page in the Temporal UI once it shows every text of `wanted`.

    Fails after a minute with what the page has.
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
        driver.execute_script("arguments[0].click()", tabs[0])  # the tab with the current details
        while True:
            text = "\n".join(texts(driver))
            if all(word in text for word in wanted):
                break
            assert time.monotonic() < deadline, (
                f"the page lacks {[word for word in wanted if word not in text]}: {text[-2500:]}"
            )
            time.sleep(0.2)
        # The box of the details shows about five lines; enlarge it to show all of them.
        driver.execute_script(
            "document.querySelectorAll('iframe').forEach(e => { e.style.height = '430px'; "
            "e.style.maxHeight = 'none'; e.parentElement.style.maxHeight = 'none'; })"
        )
        driver.execute_script(
            "document.querySelectorAll('iframe').forEach(e => "
            "{ if (e.offsetHeight > 0) e.scrollIntoView({block: 'end'}); })"
        )
        time.sleep(0.5)
        picture.write_bytes(driver.get_screenshot_as_png())
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


def take_report(picture: Path) -> None:
    """Run the demo in a folder of its own, and take a picture of the first screen of its report."""
    with tempfile.TemporaryDirectory() as folder:
        qmtl = str(Path(sys.executable).with_name("qmtl"))
        environment = {**os.environ, "QMTL_HOME": f"{folder}/home"}
        try:
            subprocess.run([qmtl, "demo"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            browser = [
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--hide-scrollbars",
                "--window-size=1280,880",
                "--virtual-time-budget=5000",  # milliseconds: the charts are drawn by then
                f"--screenshot={picture.absolute()}",
                f"file://{folder}/qmtl-demo.html",
            ]
            subprocess.run(browser, check=True, stderr=subprocess.DEVNULL)
        finally:
            subprocess.run([qmtl, "down"], cwd=folder, env=environment, check=True)


def main(folder: Path) -> int:
    """Take both pictures into the folder. Returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    take_report(folder / "report.png")
    with tempfile.TemporaryDirectory() as home:
        machine = Machine(Path(home))
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
                take_apply(
                    f"{machine.server.ui_url}/namespaces/default/workflows/apply:{stage.world}",
                    ("waits for 1 more approval", "ana approved", "dryrun at", "live at", "freeze"),
                    folder / "apply.png",
                )
                stage.client.abort(stage.world, run)
            finally:
                stage.close()
        finally:
            machine.close()
    return 0


if __name__ == "__main__":
    exit_process(main(Path(sys.argv[1])))
