"""The index's file: read back as written, refused when damaged, and never lost while it is written again."""

from __future__ import annotations

import errno
import json
import os
import stat
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from usearch.index import Index as NativeIndex

from mmfast import Index
from mmfast.search import storage
from mmfast.search.graph import EXACT_ROWS
from mmfast.search.snapshot import pack_state, unpack_state
from tests.test_index import gaussian


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    index = Index(3, "l2sq", "f32")
    index.add(range(12), np.concatenate([gaussian(8, 3), np.ones((4, 3), dtype=np.float32)]))
    index.save(tmp_path / "my.index")
    return tmp_path / "my.index"


@pytest.mark.parametrize(
    ("metric", "dtype"), [("cos", "f32"), ("cos", "i8"), ("l2sq", "bf16"), ("l2sq", "f16"), ("ip", "bf16")]
)
def test_an_index_read_back_answers_alike(metric: str, dtype: str, tmp_path: Path) -> None:
    count = EXACT_ROWS + 100
    rows = gaussian(count, 6)
    rows[50:80] = rows[40]
    index = Index(6, metric, dtype, connectivity=9, expansion_add=50)
    index.add(np.arange(count) * 5, rows)
    index.build()
    index.add([1], rows[[40]])
    index.remove([0, 200, 255, 1])
    index.add([count * 5], rows[[0]])
    index.save(str(tmp_path / "index"))
    loaded = Index.load(str(tmp_path / "index"))
    settings = ("ndim", "metric", "dtype", "connectivity", "expansion_add")
    assert [getattr(loaded, name) for name in settings] == [6, metric, dtype, 9, 50]
    assert len(loaded) == len(index) == count - 2
    assert loaded.recall_curve() == index.recall_curve() != {}
    kept = ("rows", "graph", "tail", "built")
    assert [loaded.stats()[name] for name in kept] == [index.stats()[name] for name in kept]
    for options in ({"ef": 50}, {"exact": True}):
        for before, after in zip(index.search(rows, 40, **options), loaded.search(rows, 40, **options), strict=True):
            np.testing.assert_array_equal(before, after)
    # Both go on alike: the copies of a row are still known, in and out.
    for each in (index, loaded):
        each.add([1, 2], rows[[40, 0]])
        each.remove([205])
    if metric != "ip":  # under an inner product a longer row beats the copies
        copies = sorted({1, *range(250, 400, 5)} - {255})
        assert [sorted(each.search(rows[40], 30).keys.tolist()) for each in (index, loaded)] == [copies, copies]
    assert repr(loaded) == repr(index)


def test_an_empty_index_can_be_saved(tmp_path: Path) -> None:
    Index(3, "ip").save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert (len(loaded), loaded.metric) == (0, "ip")
    loaded.add(1, np.ones(3))
    assert loaded.search(np.ones(3), 1).keys.tolist() == [1]


def test_an_index_emptied_and_one_half_removed_can_be_saved(saved: Path) -> None:
    index = Index.load(saved)
    index.remove(range(0, 12, 2))
    index.save(saved)
    index = Index.load(saved)
    assert [key in index for key in range(12)] == [False, True] * 6
    assert sorted(index.search(np.ones(3), 12).keys.tolist()) == [-1] * 6 + [1, 3, 5, 7, 9, 11]
    index.remove([1, 3, 5, 7, 9, 11])
    index.save(saved)
    assert len(Index.load(saved)) == 0


def test_a_flipped_byte_anywhere_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for position in [*range(200), *range(200, len(content), 11), *range(len(content) - 40, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"my\.index (is|has)"):
            Index.load(saved)
    saved.write_bytes(content)
    assert len(Index.load(saved)) == 12


def test_twenty_flipped_bytes_in_the_graph_are_noticed(saved: Path) -> None:
    content = np.frombuffer(saved.read_bytes(), np.uint8)
    for seed in range(20):
        damaged = content.copy()
        damaged[np.random.default_rng(seed).choice(np.arange(len(content) // 2, len(content)), 20, False)] ^= 0xFF
        saved.write_bytes(damaged.tobytes())
        with pytest.raises(ValueError, match="damaged: its checksum does not match"):
            Index.load(saved)


def test_every_truncation_and_an_extension_are_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(1, 300), *range(300, len(content), 37), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"my\.index is truncated" if length >= 8 else r"my\.index is"):
            Index.load(saved)
    saved.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"my\.index is damaged: it has .* bytes where its header says"):
        Index.load(saved)


def test_what_is_no_index_is_refused(saved: Path) -> None:
    native = NativeIndex(ndim=3)
    native.add(np.arange(9), gaussian(9, 3))
    for foreign, message in [
        (b"", "is empty"),
        (b"\x00" * 1000, "is not an mmfast index"),
        (b"PK\x03\x04 a zip file", "is not an mmfast index"),
        (bytes(native.save() or b""), "is not an mmfast index"),
        (
            saved.read_bytes()[:8] + b"\x05" + saved.read_bytes()[9:],
            "format version 5, but this mmfast reads version 4",
        ),
    ]:
        (saved.parent / "other").write_bytes(foreign)
        with pytest.raises(ValueError, match=f"other (is|has) ?.*{message.removeprefix('is ')}"):
            Index.load(saved.parent / "other")
    with pytest.raises(FileNotFoundError, match="missing"):
        Index.load(saved.parent / "missing")
    with pytest.raises(IsADirectoryError):
        Index.load(saved.parent)


@pytest.mark.parametrize("change", [{"ndim": 4}, {"dtype": "f16"}, {"connectivity": 0}, {"metric": "dot"}, {"new": 1}])
def test_settings_that_are_not_the_rows_are_refused(saved: Path, change: dict[str, Any]) -> None:
    # USearch itself adopts whatever the file says.
    meta, sections = storage.unpack(saved.read_bytes(), "file")
    storage.write_atomically(saved, storage.pack({"settings": {**meta["settings"], **change}}, sections))
    with pytest.raises(ValueError, match=r"my\.index does not hold an index that this mmfast can read"):
        Index.load(saved)


@pytest.mark.parametrize(
    "text", [b"{}", b"3", b"[1]", b"null", b"{", b"\xff", b'{"sections": 3}', b'{"sections": [""]}']
)
def test_odd_meta_data_is_refused(text: bytes, tmp_path: Path) -> None:
    header = storage._PREFIX.pack(storage.MAGIC, storage.VERSION, len(text), storage._PREFIX.size + len(text) + 32)
    content = header + text
    (tmp_path / "odd").write_bytes(content + blake2b(content, digest_size=32).digest())
    with pytest.raises(ValueError, match=r"odd does not hold an index that this mmfast can read: .*build it anew"):
        Index.load(tmp_path / "odd")


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_failing_save_leaves_the_old_file(saved: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    index = Index.load(saved)
    index.add(99, np.ones(3))

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if stage == "write":
        parts = index._pack()
        monkeypatch.setattr(index, "_pack", lambda: [*parts[:-2], "not bytes"])  # fails after most is written
        with pytest.raises(TypeError):
            index.save(saved)
    else:
        monkeypatch.setattr(os, stage, fail)
        with pytest.raises(OSError, match=rf"No space left on device: '{saved}'"):
            index.save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["my.index"]
    index.save(saved)
    assert 99 in Index.load(saved)


def test_the_order_is_write_sync_rename_sync(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.load(saved)
    calls: list[str] = []
    sync, rename = os.fsync, os.replace

    def noting_sync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def noting_rename(old: Path, new: Path) -> None:
        calls.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "replace", noting_rename)
    index.save(saved)
    assert calls[0].endswith(".tmp")
    assert Path(calls[0]).parent == saved.parent
    assert calls[1:] == ["rename", str(saved.parent)]


def test_places_that_cannot_be_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.load(saved)
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        index.save(saved.parent / "nowhere" / "index")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        index.save(saved.parent)
    if os.geteuid() != 0:  # root may write anywhere
        saved.parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                index.save(saved)
        finally:
            saved.parent.chmod(0o700)

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        index.save(saved)
    monkeypatch.undo()
    assert len(Index.load(saved)) == 12


def test_the_folder_is_opened_first_and_need_not_sync(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    index = Index.load(saved)
    index.add(99, np.ones(3))
    real_open, real_sync = os.open, os.fsync

    def refuse_folders(path: Any, *args: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, *args)

    monkeypatch.setattr(os, "open", refuse_folders)
    with pytest.raises(PermissionError):
        index.save(saved)
    assert saved.read_bytes() == before
    monkeypatch.undo()

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(codes[-1], os.strerror(codes[-1]))
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    codes = [errno.EIO, errno.EINVAL, errno.ENOTSUP]
    while len(codes) > 1:
        index.save(saved)
        codes.pop()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        index.save(saved)
    assert os.listdir(saved.parent) == ["my.index"]
    assert 99 in Index.load(saved)


def test_only_a_regular_file_is_replaced(saved: Path) -> None:
    index, folder = Index.load(saved), saved.parent
    os.mkfifo(folder / "pipe")
    (folder / "to_pipe").symlink_to("pipe")
    (folder / "loop").symlink_to("loop")
    before = sorted(os.listdir(folder))
    for name in ("pipe", "to_pipe"):
        with pytest.raises(OSError, match="it is a device, pipe or socket; name a regular file"):
            index.save(folder / name)
    with pytest.raises(OSError, match="symbolic links"):
        index.save(folder / "loop")
    assert sorted(os.listdir(folder)) == before
    assert (folder / "pipe").is_fifo()


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o400])
def test_a_replaced_file_keeps_its_permissions(saved: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.chmod(mode)
    index = Index.load(saved)
    modes = []

    def noting(old: Path, new: Path) -> None:
        modes.append(old.stat().st_mode & 0o777)
        old.rename(new)

    monkeypatch.setattr(os, "replace", noting)
    index.save(saved)
    assert [*modes, saved.stat().st_mode & 0o777] == [mode, mode]


@pytest.mark.parametrize("name", ["a\0b", b"a\0b", Path("a\0b")])
def test_names_have_no_nul(name: Any) -> None:
    for argument, use in (
        ("path", Index(3).save),
        ("path", Index.load),
        ("path", Index.from_usearch),
        ("folder", lambda folder: Index.open(folder, 3)),
    ):
        with pytest.raises(ValueError, match=rf"{argument} must have no NUL.*, got 'a\\x00b'"):
            use(name)


def test_names_may_be_bytes_and_long(saved: Path) -> None:
    index = Index.load(saved)
    for name in (b"bytes", b"\xff", ("é" * 127 + "x").encode()):
        path = os.fsencode(saved.parent) + b"/" + name
        index.save(path)
        assert len(Index.load(path)) == 12


@pytest.mark.parametrize("odd", [1, None])
def test_what_names_no_file_is_told_with_the_argument(odd: Any) -> None:
    for argument, use in (
        ("path", Index(3).save),
        ("path", Index.load),
        ("path", Index.from_usearch),
        ("folder", lambda folder: Index.open(folder, 3)),
    ):
        with pytest.raises(TypeError, match=rf"{argument} must be a str, bytes or os\.PathLike, got {odd!r} \("):
            use(odd)


def test_a_saved_file_is_as_readable_as_any_other_and_links_stay(saved: Path) -> None:
    mask = os.umask(0o027)
    try:
        index = Index.load(saved)
        link = saved.parent / "link"
        link.symlink_to(saved.name)
        saved.unlink()
        index.save(link)
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert saved.stat().st_mode & 0o777 == 0o640
    assert len(Index.load(link)) == 12


def test_the_layout_is_the_documented_one(saved: Path) -> None:
    content = saved.read_bytes()
    assert content[:8] == b"mmfastix"
    assert int.from_bytes(content[8:12], "little") == 4
    assert int.from_bytes(content[16:24], "little") == len(content)
    meta = json.loads(content[24 : 24 + int.from_bytes(content[12:16], "little")])
    assert meta["settings"] == {
        "ndim": 3, "metric": "l2sq", "dtype": "f32", "connectivity": 16, "expansion_add": 128
    }  # fmt: skip
    _, sections = storage.unpack(content, "file")
    assert json.loads(bytes(sections[0])) == {"main": None, "tail": 12}
    assert [len(section) for section in sections[1:]] == [12 * 8, 12 * 3 * 4]
    start = content.index(bytes(sections[1]))
    assert start % 64 == 0


@pytest.fixture
def packed(tmp_path: Path) -> tuple[dict[str, Any], list[bytes]]:
    index = Index(6, "cos", "bf16")
    index.add(range(EXACT_ROWS + 100), gaussian(EXACT_ROWS + 100, 6))
    index.build()
    index.save(tmp_path / "index")
    meta, sections = storage.unpack((tmp_path / "index").read_bytes(), "file")
    return meta, [bytes(section) for section in sections]


@pytest.mark.parametrize("seed", range(60))
def test_sections_that_make_no_sense_never_crash(packed: tuple[dict[str, Any], list[bytes]], seed: int) -> None:
    # The checksum agrees here: whoever can compute it could have written anything.
    meta, sections = packed
    rng = np.random.default_rng(seed)
    which = seed % len(sections)
    damaged = bytearray(sections[which])
    kind = seed // len(sections) % 3
    if kind == 0:
        for at in rng.integers(0, len(damaged), 30):
            damaged[at] = rng.integers(0, 256)
    elif kind == 1:
        del damaged[rng.integers(0, len(damaged)) :]
    else:
        damaged += bytes(rng.integers(1, 100))
    content = b"".join(storage.pack(meta, [*sections[:which], bytes(damaged), *sections[which + 1 :]]))
    try:
        index = Index._unpack(content, "file")
    except ValueError as error:
        assert "file does not hold an index that this mmfast can read" in str(error)  # noqa: PT017
        return
    rows = gaussian(20, 6)
    for options in ({"ef": 30}, {"exact": True}):
        assert index.search(rows, 5, **options).keys.shape == (20, 5)


def test_marks_of_removed_rows_are_checked() -> None:
    index = Index(3)
    index.add(range(10), gaussian(10, 3))
    index.build()
    index.remove(4)
    sections = [bytearray(each) for each in pack_state(index._state)]
    (marks,) = (each for each in sections if len(each) == 10)
    marks[5] = 2
    with pytest.raises(ValueError, match="what is removed is damaged"):
        unpack_state(index._settings, [memoryview(each) for each in sections])
