"""The months of examples/months.py, for docs/own-data.md: record.json, and the page as a picture.

    python benchmarks/months/run.py [--folder runs/months]

A folder whose page is written is not learnt again. The picture needs chromium and chromedriver (`make browser` installs
them); without them the old one stays.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "docs/pictures/months.png"
WIDTH, HEIGHT = 1000, 640


def picture(page: Path) -> None:
    """The top of the page in a light theme."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chrome.get(page.resolve().as_uri())
    while not chrome.execute_script("return document.documentElement.dataset.drawn"):
        time.sleep(0.1)
    chrome.save_screenshot(str(PICTURE))
    chrome.quit()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, default=ROOT / "runs/months")
    folder = words.parse_args().folder
    sys.path.insert(0, str(ROOT / "examples"))
    if not (folder / "page/report.json").is_file():
        import months

        months.main(folder)
    [run] = json.loads((folder / "page/report.json").read_text(encoding="utf-8"))["runs"]
    about = run["about"]
    record = {
        "standing": run["standing"],
        "noticed": run["noticed"],
        "sizes": about["sizes"],
        "average_accuracy": run["average_accuracy"],
        "forgetting": run["forgetting"],
        "versions": about["versions"],
        "machine": platform.machine(),
    }
    (HERE / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if shutil.which("chromium") and shutil.which("chromedriver"):
        picture(folder / "page/report.html")


if __name__ == "__main__":
    main()
