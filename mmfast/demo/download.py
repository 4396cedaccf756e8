"""Archives from the npm registry, fetched by npm, kept in the user's cache folder and checked before each use."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Enough for 75 MB on a slow line; without a network npm gives up by itself within seconds.
TIMEOUT = 600
NPM_PACK = ["npm", "pack", "--silent", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--pack-destination"]


class DownloadError(Exception):
    """An archive cannot be had; the message says why."""


class Package(NamedTuple):
    """One archive of the npm registry."""

    name: str
    version: str
    sha512: str  # base64, as in the registry's "integrity" field
    megabytes: int

    @property
    def archive(self) -> str:
        return f"{self.name}-{self.version}.tgz"


def default_cache() -> Path:
    """Return the user's cache folder for this package: ``$XDG_CACHE_HOME/mmfast`` or ``~/.cache/mmfast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfast"


def fetch(packages: list[Package], cache: Path | None = None, progress: bool = True) -> list[Path]:
    """Return the paths of the archives, downloading those that the cache lacks or holds damaged.

    Raises
    ------
    DownloadError
        npm is not installed or failed, the cache cannot be written, or what arrived is not what was asked for.
    """
    folder = cache or default_cache()
    paths = [folder / package.archive for package in packages]
    missing = [package for package, path in zip(packages, paths, strict=True) if not _intact(path, package)]
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, disable=not progress or not missing) as display:
        for package in missing:
            task = display.add_task(f"Fetching {package.name} {package.version} ({package.megabytes} MB)", total=1)
            _npm_pack(package, folder)
            display.advance(task)
    return paths


def _npm_pack(package: Package, folder: Path) -> None:
    """Download beside the final place and move the checked archive there, so that no half of one is ever found."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as partial:
            subprocess.run(
                [*NPM_PACK, partial, f"{package.name}@{package.version}"],
                cwd=partial, check=True, capture_output=True, text=True, timeout=TIMEOUT,
            )  # fmt: skip
            arrived = Path(partial) / package.archive
            if not _intact(arrived, package):
                raise DownloadError(f"{package.archive} arrived damaged: its SHA-512 is not the published one")
            arrived.replace(folder / package.archive)
    except FileNotFoundError as error:
        raise DownloadError("npm is not installed (it comes with Node.js: https://nodejs.org)") from error
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"npm pack {package.name} took more than {TIMEOUT} seconds") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines() or [f"exit status {error.returncode}"]
        raise DownloadError(f"npm pack {package.name} failed: {reason[0]}") from error
    except OSError as error:
        raise DownloadError(f"the cache folder {folder} cannot be used: {error}") from error


def _intact(path: Path, package: Package) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        digest = hashlib.sha512()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode() == package.sha512
