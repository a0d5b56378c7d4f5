"""``STATE/bundles``: copies of the bundles that serve or served, so that a rollback does not depend on anybody's folders."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from adclick_edge.bundle import Bundle
from adclick_edge.bundle.archive import open_zip, read_entry
from adclick_edge.bundle.manifest import MAX_MANIFEST_BYTES
from adclick_edge.bundle.names import CALIBRATION, MANIFEST, REGIONS
from adclick_edge.bundle.settings import encode_settings
from adclick_edge.errors import BundleError, LineError
from adclick_edge.files import atomic_folder, write_bytes
from adclick_edge.line.serving_file import Kept
from adclick_edge.runtime.inspector import Settings

__all__ = ["BundleStore"]

_FOLDER = re.compile(r"[0-9a-f]{12}(-[0-9]{1,4})?")


class BundleStore:
    """Folders ``ROOT/PRODUCT/VERSION``, written once; only their settings change later.

    The same version may be kept twice, as ``VERSION-2`` and so on: with other thresholds it is another bundle to the
    people of the line, and a copy that serves must not change when one that resembles it is brought.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, product: str, kept: Kept) -> Path:
        return self._root / product / kept.folder

    def keep(self, product: str, bundle: Bundle, *, beside: Collection[Kept] = ()) -> Kept:
        """Copy an opened bundle, thresholds and regions included, under a name that none of ``beside`` has.

        Raises BundleError, LineError.
        """
        taken = {folder.name for folder in self._folders(product)} | {kept.folder for kept in beside}
        kept = Kept(folder=_free_name(bundle.manifest.version, taken), version=bundle.manifest.version)
        place = self.path(product, kept)
        try:
            with atomic_folder(place) as folder:
                (folder / MANIFEST).write_bytes(_manifest_bytes(bundle))
                for name in bundle.manifest.files:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(bundle.read(name))
                for name, body in ((CALIBRATION, bundle.calibration), (REGIONS, bundle.regions)):
                    if body is not None:
                        (folder / name).write_bytes(encode_settings(body, f"{place}: {name}"))
        except OSError as error:
            raise LineError(
                f"{place}: {bundle.location} cannot be copied there ({error}); make room on the disk or check the "
                "rights of the state folder"
            ) from error
        return kept

    def keep_settings(self, product: str, kept: Kept, settings: Settings) -> None:
        """Let a copy have the thresholds and regions its original serves with. Raises LineError."""
        place = self.path(product, kept)
        try:
            write_bytes(place / REGIONS, encode_settings(settings.regions, f"{place}: {REGIONS}"))
            if settings.calibration is not None:
                write_bytes(place / CALIBRATION, encode_settings(settings.calibration, f"{place}: {CALIBRATION}"))
        except OSError as error:
            raise LineError(f"{place}: the thresholds cannot be kept there ({error}); make room on the disk") from error

    def remove(self, product: str, kept: Kept) -> None:
        shutil.rmtree(self.path(product, kept), ignore_errors=True)

    def prune(self, product: str, keep: Collection[Kept]) -> None:
        """Remove all copies but ``keep``; what the daemon did not make stays."""
        wanted = {kept.folder for kept in keep}
        for folder in self._folders(product):
            if _FOLDER.fullmatch(folder.name) and folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def clear_leftovers(self, product: str) -> None:
        """Remove what a process that was killed left half-copied."""
        for folder in self._folders(product):
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self, product: str) -> list[Path]:
        try:
            return [path for path in (self._root / product).iterdir() if path.is_dir() and not path.is_symlink()]
        except OSError:
            return []


def _free_name(version: str, taken: Collection[str]) -> str:
    names = [version, *(f"{version}-{number}" for number in range(2, 10_000))]
    return next(name for name in names if name not in taken)


def _manifest_bytes(bundle: Bundle) -> bytes:
    """As they were written: a manifest's own checksum is over keys that this release may write otherwise."""
    if bundle.location.is_dir():
        return (bundle.location / MANIFEST).read_bytes()
    with open_zip(bundle.location) as archive:
        try:
            return read_entry(archive, MANIFEST, MAX_MANIFEST_BYTES)
        except KeyError:
            raise BundleError(f"{bundle.location}: {MANIFEST} is gone from the zip; bring the bundle again") from None
