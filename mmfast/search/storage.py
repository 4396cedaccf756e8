"""The index's file: written whole or not at all, and believed only after its checksum agrees.

USearch's own format has no checksum, and a few flipped bytes in its graph end the process at the next search; writing
it in place destroys the previous file where the disk fills. So its bytes travel inside this envelope (little-endian):

    magic      8 bytes   b"mmfastix"
    version    u32
    meta size  u32
    file size  u64       the whole file: tells a truncated one from a damaged one
    meta       JSON      the settings of the index and the sizes of the sections
    sections   bytes     each after zeros up to the next multiple of 64
    checksum   32 bytes  blake2b of everything before it

The checksum guards against accidents, not against an attacker, who can compute it: load only files you trust.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

MAGIC = b"mmfastix"
VERSION = 4
_ALIGNMENT = 64  # of sections, so that arrays can be used where they lie
_PREFIX = struct.Struct("<8sIIQ")
_CHECKSUM_BYTES = 32
_TEMPORARY = (".mmfast-", ".tmp")  # how the names of files begin and end that are not whole yet

Bytes = bytes | bytearray | memoryview
FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def pack(meta: dict[str, Any], sections: Sequence[Bytes]) -> list[Bytes]:
    """Return the parts of a file, in order."""
    text = json.dumps({**meta, "sections": [len(section) for section in sections]}).encode()
    end = _PREFIX.size + len(text)
    aligned: list[Bytes] = []
    for section in sections:
        aligned += [bytes(-end % _ALIGNMENT), section]
        end += -end % _ALIGNMENT + len(section)
    parts: list[Bytes] = [_PREFIX.pack(MAGIC, VERSION, len(text), end + _CHECKSUM_BYTES), text, *aligned]
    checksum = blake2b(digest_size=_CHECKSUM_BYTES)
    for part in parts:
        checksum.update(part)
    return [*parts, checksum.digest()]


def as_name(argument: str, path: FilePath) -> str:
    """Return the path that was given as ``argument`` as a str."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"{argument} must be a str, bytes or os.PathLike, got {path!r} ({type(path).__name__})"
        ) from None
    if "\0" in name:
        raise ValueError(f"{argument} must have no NUL, which ends the names of files, got {name!r}")
    return name


def map_file(name: str) -> Bytes:
    """Return the content of a regular file, mapped."""
    # Opening a pipe would wait for someone to write into it.
    with open(name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "a device, pipe or socket is no mmfast index", name)
        if not status.st_size:
            return b""
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def unpack(content: Bytes, source: str) -> tuple[dict[str, Any], list[memoryview]]:
    """Return the meta data and the sections of a file's ``content``; ``source`` names it in errors."""
    view = memoryview(content)
    if len(view) == 0:
        raise ValueError(f"{source} is empty, not an mmfast index")
    if bytes(view[: len(MAGIC)]) != MAGIC[: len(view)]:
        raise ValueError(f"{source} is not an mmfast index: it does not begin with {MAGIC!r}")
    if len(view) < _PREFIX.size:
        raise ValueError(f"{source} is truncated: it ends within its header, after {len(view)} bytes")
    _, version, meta_size, size = _PREFIX.unpack_from(view)
    if version != VERSION:
        raise ValueError(f"{source} has format version {version}, but this mmfast reads version {VERSION}")
    if len(view) != size:
        what = "truncated" if len(view) < size else "damaged"
        raise ValueError(f"{source} is {what}: it has {len(view):,} bytes where its header says {size:,}")
    body = view[:-_CHECKSUM_BYTES]
    if blake2b(body, digest_size=_CHECKSUM_BYTES).digest() != view[-_CHECKSUM_BYTES:]:
        raise ValueError(f"{source} is damaged: its checksum does not match; restore it from a copy or rebuild it")
    sections = []
    start = _PREFIX.size + meta_size
    try:
        meta = dict(json.loads(bytes(body[_PREFIX.size : start])))
        for length in meta.pop("sections"):
            start += -start % _ALIGNMENT
            sections.append(body[start : start + length])
            start += length
    except (KeyError, TypeError, ValueError) as error:  # the checksum agrees: it was written like this
        raise unreadable(source, error) from error
    return meta, sections


def unreadable(source: str, error: Exception) -> ValueError:
    """Return the error for a whole and undamaged file whose content makes no sense here."""
    return ValueError(
        f"{source} does not hold an index that this mmfast can read: {type(error).__name__}: {error}; "
        "read it with the version that wrote it, or build it anew"
    )


def write_atomically(path: FilePath, parts: Sequence[Bytes]) -> None:
    """Write ``parts`` to ``path`` so that a crash, at any moment, leaves either the old file or the new one whole.

    An error leaves the old file, but for one: where the disk fails to note the new name, the new file is in place, and
    might not outlive a crash.
    """
    target = Path(os.path.realpath(as_name("path", path)))  # through a symbolic link to the file that it names
    mode = _replaceable(target)
    # In the same folder, since a rename is atomic only within one file system, and under a short name, since that of
    # the target may be as long as names can be. O_EXCL: never over another's file.
    temporary = target.parent / f"{_TEMPORARY[0]}{secrets.token_hex(6)}{_TEMPORARY[1]}"
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        with naming(target):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
            try:
                with open(descriptor, "wb") as file:
                    if mode is not None:
                        os.fchmod(file.fileno(), mode)  # the umask does not apply to a file that was there
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):  # the error that brought us here is the one to tell
                    temporary.unlink()
                raise
            try:
                os.fsync(folder)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, and need not
                    raise
    finally:
        os.close(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that name none: those of a descriptor, as of a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what processes left in ``folder`` that were killed in :func:`write_atomically`; nobody may be in it."""
    for path in folder.glob("*".join(_TEMPORARY)):
        with suppress(OSError):
            path.unlink()


def _replaceable(target: Path) -> int | None:
    """Return the permission bits of the file to replace, None where there is none; refuse all but a regular file."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot save the index to {target}: the folder {target.parent} does not exist")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"cannot save the index to {target}: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise OSError(f"cannot save the index to {target}: it is a device, pipe or socket; name a regular file")
    return stat.S_IMODE(mode)
