"""``mmfast index``: what is built from files, found, shown and written, and what is said where that cannot be done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmfast import Index, cli, col, index_build, index_files, index_where
from mmfast.search import arrays
from mmfast.search.durable import DurableIndex
from mmfast.search.folding import LEAST_ROWS, Folding
from tests.test_index import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, NDIM = 200, 6


@pytest.fixture(scope="module")
def vectors() -> npt.NDArray[np.float32]:
    return gaussian(ROWS, NDIM)


@pytest.fixture
def files(tmp_path: Path, vectors: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder of files to index and to search with."""
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vectors)
    np.save("q.npy", vectors[:3] + 0.01)
    np.save("one.npy", vectors[7])
    np.save("keys.npy", np.array([f"key {row}" for row in range(ROWS)]))
    np.save("numbers.npy", np.arange(ROWS, dtype=np.uint16) * 3)
    return tmp_path


@pytest.fixture
def films(files: Path, vectors: npt.NDArray[np.float32]) -> Path:
    """Make an index with metadata."""
    documents = [{"year": 1950 + row, "title": f"Night {row}", "by": {"name": "AB"[row % 2]}} for row in range(ROWS)]
    with Index.open("films", NDIM, key_kind="str") as index:
        index.add([f"film {row}" for row in range(ROWS)], vectors, documents)
        index.build()
    return files


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run ``mmfast index`` and return its status, its output and its errors."""
    status = cli.main(["index", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a command ends with that cannot be done."""
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("mmfast index: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("batch", ["7", "1000"])
def test_a_file_is_built_and_searched(
    files: Path, vectors: npt.NDArray[np.float32], capsys: pytest.CaptureFixture[str], dtype: str, batch: str
) -> None:
    np.save("v.npy", np.asfortranarray(vectors.astype(dtype)))
    status, out, err = run(capsys, "build", "my", "v.npy", "--metric", "l2sq", "--dtype", "f32", "--batch", batch)
    assert (status, err) == (0, "")
    assert f"{ROWS} rows of {NDIM} features" in out
    with Index.open("my", read_only=True) as index:
        assert (index.metric, index.dtype, index.key_kind, len(index)) == ("l2sq", "f32", "int", ROWS)
        np.testing.assert_array_equal(index.get(range(ROWS)), vectors.astype(dtype).astype(np.float32))
        assert index.stats()["tail"] == 0
        expected = index.search(np.load("q.npy"), 5, exact=True)
    assert run(capsys, "search", "my", "q.npy", "-k", "5", "--exact", "--out", "r.npz")[0] == 0
    with np.load("r.npz") as found:
        np.testing.assert_array_equal(found["keys"], expected.keys)
        np.testing.assert_array_equal(found["distances"], expected.distances)


def test_keys_are_numbers_or_text(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options, kind, last in (
        ("a", ["--keys", "keys.npy"], "str", f"key {ROWS - 1}"),
        ("b", ["--keys", "numbers.npy"], "int", 3 * (ROWS - 1)),
        ("c", ["--keys", "numbers.npy", "--key-kind", "str"], "str", str(3 * (ROWS - 1))),
        ("d", [], "int", ROWS - 1),
    ):
        assert run(capsys, "build", name, "v.npy", *options)[0] == 0
        with Index.open(name, read_only=True) as index:
            assert index.key_kind == kind
            assert list(index)[-1] == last


def test_text_keys_travel_to_both_kinds_of_files(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two rows fulfil the condition, so that the third place of each query is empty.
    options = ["-k", "3", "--where", "year < 1952", "--out"]
    assert run(capsys, "search", "films", "q.npy", *options, "r.npz")[0] == 0
    assert run(capsys, "search", "films", "q.npy", *options, "r.jsonl")[0] == 0
    with np.load("r.npz") as found:
        assert found["keys"].dtype.kind == "U"
        assert found["keys"][0].tolist() == ["film 0", "film 1", ""]
        lines = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
        assert [line["query"] for line in lines] == [0, 1, 2]
        for line, keys, distances in zip(lines, found["keys"], found["distances"], strict=True):
            assert line["keys"] == keys[:2].tolist()
            assert [document["year"] for document in line["metadata"]] == [1950 + int(key[5:]) for key in keys[:2]]
            assert np.array_equal(np.array(line["distances"], np.float32), distances[:2])
            assert np.isinf(distances[2])


def test_the_table_shows_what_was_found(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "search", "films", "one.npy", "-k", "2", "--where", "by.name == 'B'")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["rank", "distance", "key", "metadata"]
    assert lines[1].split(maxsplit=4) == ["1", "0.0000", "film", "7", 'year: 1957  title: "Night 7"  by: {"name": "B"}']
    assert len(lines) == 3
    np.save("many.npy", np.ones((30, NDIM)))
    _, out, _ = run(capsys, "search", "films", "many.npy", "-k", "25")
    assert len(out.splitlines()) == 1 + 10 * 10 + 1
    assert "(the first 10 of 30 queries and the nearest 10 of 25 rows; --out FILE writes all)" in out


def test_no_room_is_made_for_more_rows_than_there_are(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "search", "films", "q.npy", "-k", "1000000", "--out", "r.npz")
    assert (status, out) == (0, f"r.npz: 3 queries, up to {ROWS} rows each\n")
    with np.load("r.npz") as found:
        assert found["keys"].shape == found["distances"].shape == (3, ROWS)
        assert {len(set(row)) for row in found["keys"].tolist()} == {ROWS}
    _, out, _ = run(capsys, "search", "films", "one.npy", "-k", "100000")
    assert f"(the nearest 10 of {ROWS} rows; --out FILE writes all)" in out
    _, out, _ = run(capsys, "search", "films", "one.npy", "-k", "100000", "--where", "year < 1975")
    assert "(the nearest 10 of 25 rows; --out FILE writes all)" in out


def test_nothing_found_is_said(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "search", "films", "q.npy", "--where", "year > 9999")[:2] == (
        0,
        "nothing found: no row fulfils --where\n",
    )
    message = refused(capsys, "search", "films", "q.npy", "--where", "year > '3'")
    assert "--where: no row of the index has text in column 'year' (it has numbers)" in message
    message = refused(capsys, "search", "films", "q.npy", "--where", "yeer > 3 or year > 9999")
    assert "no row of the index has a column 'yeer'; it has year, title, by; did you mean 'year'?" in message
    Index.open("empty", NDIM).close()
    assert "there are no rows" in run(capsys, "search", "empty", "q.npy")[1]


def test_an_existing_index_takes_more(
    files: Path, vectors: npt.NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "build", "my", "v.npy")[0] == 0
    message = refused(capsys, "build", "my", "v.npy")
    assert f"already holds {ROWS} of the keys: 0, 1, 2, 3, 4 and {ROWS - 5} more; --upsert replaces them" in message
    np.save("v.npy", -vectors)
    np.save("keys.npy", np.arange(ROWS) + 50)
    status, out, _ = run(capsys, "build", "my", "v.npy", "--keys", "keys.npy", "--upsert")
    assert status == 0
    assert f"added 50 rows, replaced {ROWS - 50}" in out
    with Index.open("my", read_only=True) as index:
        expected = -vectors[0] / np.linalg.norm(vectors[0])
        np.testing.assert_allclose(index.get(50)[0], expected, rtol=2**-7)  # bf16


def test_an_empty_index_keeps_its_settings(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Index.open("my", NDIM, "l2sq", "f16").close()
    np.save("v.npy", np.zeros((2, NDIM)))  # which "cos" would refuse
    assert run(capsys, "build", "my", "v.npy")[0] == 0
    np.save("v.npy", np.full((2, NDIM), 7e4))  # which f16 refuses
    assert "f16 cannot hold" in refused(capsys, "build", "my", "v.npy", "--upsert")


def test_what_was_cut_short_is_completed(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(path: Path, *options: Any) -> index_files.Vectors:
        opened = index_files.Npy(path)
        batches, passes = opened.batches, []

        def some(rows: int) -> Any:
            passes.append(rows)
            for batch in batches(rows):
                if len(passes) == 2 and batch.start >= 100:  # the first is the check
                    raise KeyboardInterrupt
                yield batch

        opened.batches = some  # type: ignore[method-assign]
        return opened

    with monkeypatch.context() as patch:
        patch.setattr(index_build, "open_vectors", stopping)
        status, _, err = run(capsys, "build", "my", "v.npy", "--batch", "20")
    assert status == 130
    kept = "the index holds 100 rows, and running this again with --upsert adds the others"
    assert err == f"mmfast index: stopped; {kept}\n"
    assert run(capsys, "build", "my", "v.npy", "--upsert")[0] == 0
    assert run(capsys, "verify", "my")[:2] == (0, f"my: {ROWS} rows, nothing wrong\n")


def test_no_graph_is_built_of_what_was_cut_short(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = LEAST_ROWS + 500
    vectors = gaussian(rows, NDIM)
    np.save("v.npy", vectors)
    with Index.open("my", NDIM) as index:
        index._engine._folding.stop()
        index.add(range(rows - 200), vectors[: rows - 200])
    folded, fold = [], DurableIndex._fold

    def counted(index: DurableIndex) -> None:
        folded.append(len(index))
        fold(index)

    monkeypatch.setattr(DurableIndex, "_fold", counted)
    begun: list[object] = []  # in the background
    monkeypatch.setattr(Folding, "_start", lambda *_: begun.append(1))
    assert "already holds 10,300 of the keys" in refused(capsys, "build", "my", "v.npy")
    assert folded == []
    status, _, err = run(capsys, "build", "my", "v.npy", "--upsert")
    assert (status, err) == (0, "")
    assert (folded, begun) == ([rows], [])
    with Index.open("my", read_only=True) as index:
        assert (index.stats()["graph"], index.stats()["tail"]) == (rows, 0)
    assert run(capsys, "verify", "my")[0] == 0


def test_ctrl_c_while_the_graph_is_built_is_no_error(files: Path) -> None:
    np.save("v.npy", gaussian(60_000, 8))
    command = [sys.executable, "-m", "mmfast.cli", "index", "build", "my", "v.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("building the graph" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert "Traceback" not in err
    assert process.returncode == 130
    assert "all rows are in the index, and mmfast index compact my builds its graph" in err


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        ([(12, np.nan), (40, np.inf)], [], "v.npy: NaN or infinity in rows 12, 40; drop or mend these rows"),
        ([(150, 0)], [], "only zeros, which have no direction, in row 150"),
        ([(3, np.nan), (9, 0)], [], "NaN or infinity in row 3; only zeros, which have no direction, in row 9"),
        ([(160, 1e19)], ["--metric", "ip"], "a norm above 9.2e+18 in row 160"),
        (
            [(170, 7e4)],
            ["--metric", "l2sq", "--dtype", "f16"],
            "values that f16 cannot hold; use --dtype bf16 in row 170",
        ),
    ],
)
def test_rows_of_the_file_are_named_before_any_is_added(
    files: Path,
    vectors: npt.NDArray[np.float32],
    capsys: pytest.CaptureFixture[str],
    damage: list[tuple[int, float]],
    arguments: list[str],
    message: str,
) -> None:
    spoilt = vectors.copy()
    for row, value in damage:
        spoilt[row] = value
    np.save("v.npy", spoilt)
    assert message in refused(capsys, "build", "my", "v.npy", "--batch", "7", *arguments)
    assert not Path("my").exists()


@pytest.mark.parametrize(
    ("metric", "dtype"), [("cos", "i8"), ("cos", "f16"), ("ip", "f16"), ("l2sq", "bf16"), ("ip", "f32")]
)
@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
def test_the_check_agrees_with_the_index(metric: str, dtype: str, given: str) -> None:
    scales = [0, 1e-320, 1e-40, 1, 6e4, 65519, 65520, 7e4, 3e18, 4e18, 1e38, 1e300, np.inf, np.nan]
    with np.errstate(over="ignore"):
        rows = np.outer(np.array(scales), np.ones(NDIM)).astype(given)
    bad = {row for _, at in index_files.unfit(rows, metric, dtype) for row in at.tolist()}
    for number, row in enumerate(rows):
        unfit = not np.isfinite(row).all() or is_refused(row[None], metric, dtype)
        assert (number in bad) == unfit, scales[number]


def is_refused(rows: npt.NDArray[Any], metric: str, dtype: str) -> bool:
    try:
        arrays.encode("vectors", rows, metric, dtype, 1)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere", "q.npy"], "there is no folder nowhere; make an index with: mmfast index build nowhere"),
        (["info", "."], "is no mmfast index: it has no truth.sqlite, but"),
        (
            ["verify", "torn"],
            "torn is no mmfast index: it has no truth.sqlite, but snapshot.index; name another folder",
        ),
        (["search", "hollow", "q.npy"], "hollow is empty; make an index in it with: mmfast index build hollow VECTORS"),
        (["verify", "v.npy"], "v.npy is a file; a durable index is a folder"),
        (["compact", "nowhere"], "there is no folder nowhere"),
        (["search", "films", "nothing.npy"], "there is no file nothing.npy"),
        (["search", "films", "wide.npy"], "wide.npy has 8 features a query, but the index has 6"),
        (["search", "films", "keys.npy"], "keys.npy must hold float16, float32 or float64, got <U7"),
        (["search", "films", "cube.npy"], "cube.npy must hold an array of shape (N, D), or (D,) for one query"),
        (["search", "films", "nan.npy"], "nan.npy: NaN or infinity in row 1"),
        (["search", "films", "text.npy"], "text.npy is not a .npy array"),
        (["search", "films", "cut.npy"], "cut.npy is not a .npy array, or is cut short"),
        (["search", "films", "token.npy"], "token.npy is damaged: its header cannot be read"),
        (["search", "films", "syntax.npy"], "syntax.npy is damaged: its header cannot be read"),
        (["search", "films", "bytes.npy"], "bytes.npy is damaged: its header cannot be read"),
        (["search", "films", "pipe.npy"], "pipe.npy is no regular file; write the array to one"),
        (["build", "my", "pipe.npy"], "pipe.npy is no regular file; write the array to one"),
        (["search", "films", "two.npz"], "two.npz is an archive of arrays"),
        (["search", "films", "q.npy", "--out", "r.txt"], "--out must end in .npz or .jsonl, got r.txt"),
        (["search", "films", "q.npy", "--out", "two.npz"], "two.npz exists already"),
        (["search", "films", "q.npy", "--out", "no/r.npz"], "cannot write no/r.npz: there is no folder no"),
        (["search", "films", "q.npy", "--where", "year >"], "--where, character 7: the text ends too early"),
        (["build", "films", "wide.npy", "--keys", "few.npy"], "wide.npy has 8 features a row, but the index has 6"),
        (["build", "films", "v.npy"], "the keys of films are text, not integers; give --keys"),
        (
            ["build", "films", "v.npy", "--keys", "keys.npy", "--metric", "ip"],
            "was made with metric='cos', got metric='ip'",
        ),
        (["build", "my", "one.npy"], "one.npy must hold an array of shape (N, D), one vector a row, got (6,)"),
        (["build", "my", "numbers.csv"], "vectors are read from .npy or .parquet, got numbers.csv"),
        (["build", "my", "v.npy", "--keys", "few.npy"], "few.npy must hold a key for each of 200 rows"),
        (["build", "my", "v.npy", "--keys", "again.npy"], "again.npy: keys must be distinct, got 5 in rows 5 and 60"),
        (["build", "my", "v.npy", "--keys", "same.npy"], "same.npy: keys must be distinct, got a in rows 0 and 1"),
        (["build", "my", "v.npy", "--keys", "minus.npy"], "keys must be from 0 to 2**63 - 2, got -1 in rows 0"),
        (["build", "my", "none.npy"], "none.npy holds no rows; an index is made of one at least"),
        (["build", "my", "v.npy", "--keys", "odd.npy"], r"no lone surrogates, got 'a\x00b' in rows 3, 7"),
        (["build", "my", "v.npy", "--keys", "one.npy"], "one.npy must hold a key for each of 200 rows"),
        (["build", "my", "v.npy", "--keys", "objects.npy"], "objects.npy holds Python objects; save text with"),
        (["build", "my", "v.npy", "--keys", "column"], "--keys must be a .npy file, since v.npy has no columns"),
        (["build", "my", "v.npy", "--keys", "keys.npy", "--key-kind", "int"], "keys that are integers"),
        (["build", "my", "v.npy", "--key-kind", "str"], "--key-kind str needs --keys"),
        (["build", "my", "v.npy", "--metadata", "year"], "--metadata names columns of a .parquet file"),
        (["build", "my", "v.npy", "--index", "year"], "--index: 'year' is not among the columns of the metadata"),
        (
            ["build", "films", "v.npy", "--keys", "keys.npy", "--index", "by.name,yeer"],
            "--index: 'yeer' is not among the columns of the metadata, which are year, title, by",
        ),
        (["build", "no/my", "v.npy"], "there is no folder"),
        (["build", ".", "v.npy"], "is no mmfast index: it has no truth.sqlite, but"),
        (["build", "my", "v.npy", "--metric", "ip", "--dtype", "i8"], 'dtype "i8" keeps only the direction'),
    ],
)
def test_what_the_user_can_mend_is_said(
    films: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    np.save("wide.npy", np.ones((2, 8)))
    np.save("cube.npy", np.ones((2, 2, NDIM)))
    np.save("nan.npy", np.array([[1.0] * NDIM, [np.nan] * NDIM]))
    np.savez("two.npz", np.ones(2))
    np.save("few.npy", np.array(["a", "b"]))
    np.save("again.npy", np.where(np.arange(ROWS) == 60, 5, np.arange(ROWS)))
    np.save("same.npy", np.array(["a"] * ROWS))
    np.save("minus.npy", np.arange(ROWS) - 1)
    np.save("objects.npy", np.array([1, "a"] * (ROWS // 2), dtype=object), allow_pickle=True)
    np.save("none.npy", np.ones((0, NDIM)))
    np.save("odd.npy", np.array([{3: "a\0b", 7: "\ud800"}.get(row, str(row)) for row in range(ROWS)]))
    os.mkfifo("pipe.npy")
    Path("hollow").mkdir()
    shutil.copytree("films", "torn")
    Path("torn/truth.sqlite").unlink()
    for name, old, new in (("token", b"}", b" "), ("syntax", b"(3", b"((3"), ("bytes", b"'descr'", b"b'descr'")):
        Path(f"{name}.npy").write_bytes(Path("q.npy").read_bytes().replace(old, new, 1))
    Path("text.npy").write_text("not an array")
    Path("cut.npy").write_bytes(Path("v.npy").read_bytes()[:300])
    assert message in refused(capsys, *arguments)
    assert not Path("my").exists()


def test_results_are_overwritten_only_by_force(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.jsonl").write_text("mine")
    assert "overwrite it with --force" in refused(capsys, "search", "films", "q.npy", "--out", "r.jsonl")
    assert Path("r.jsonl").read_text() == "mine"
    assert run(capsys, "search", "films", "q.npy", "--out", "r.jsonl", "--force")[0] == 0
    assert json.loads(Path("r.jsonl").read_text().splitlines()[0])["keys"][0] == "film 0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "my"],
        ["search", "a", "b", "-k", "0"],
        ["search", "a", "b", "--recall", "2"],
        ["search", "a", "b", "--exac"],
        ["build", "a", "b", "--meta", "c"],
        [],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["index", *arguments])
    assert stopped.value.code == 2
    assert "usage: mmfast" in capsys.readouterr().err


def test_info(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", "films")
    assert status == 0
    facts = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert facts["rows"] == f"{ROWS} of {NDIM} features"
    assert (facts["metric"], facts["dtype"], facts["keys"]) == ("cos", "bf16", "str")
    assert facts["metadata"] == "year, title, by"
    assert facts["links"] == "connectivity 16, expansion_add 128"
    assert facts["disk"] == out.splitlines()[-1].removeprefix("together").strip()
    size = Path("films/truth.sqlite").stat().st_size / 1e3
    assert re.search(rf"truth\.sqlite +{size:.1f} kB", out)


def test_info_shows_the_recall_curve(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Index.open("my", NDIM) as index:
        index.add(range(3000), gaussian(3000, NDIM))
        index.build()
        curve = index.recall_curve()
    _, out, _ = run(capsys, "info", "my")
    for k, points in curve.items():
        table = out.partition(f"Recall of the {k} nearest")[2].splitlines()[2 : 2 + len(points)]
        assert [line.split()[:2] for line in table] == [[str(p.ef), f"{p.recall:.4f}"] for p in points]


def test_verify_lists_damage_and_says_what_mends_it(
    films: Path, vectors: npt.NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "verify", "films") == (0, f"films: {ROWS} rows, nothing wrong\n", "")
    shutil.copytree("films", "cut")
    with sqlite3.connect("films/truth.sqlite") as connection:
        connection.execute("UPDATE items SET vector = zeroblob(length(vector)) WHERE key IN ('film 3', 'film 8')")
    connection.close()
    status, out, err = run(capsys, "verify", "films")
    assert status == 1
    assert out.splitlines() == [f"the vector under key 'film {n}' does not match its checksum" for n in (3, 8)]
    assert err.splitlines() == [
        "films: 2 problems",
        "put vectors in again with mmfast index build FOLDER VECTORS --keys KEYS --upsert; "
        "or restore the folder from a copy",
    ]
    np.save("two.npy", vectors[[3, 8]])
    np.save("keys.npy", np.array(["film 3", "film 8"]))
    assert run(capsys, "build", "films", "two.npy", "--keys", "keys.npy", "--upsert")[0] == 0
    assert run(capsys, "verify", "films")[0] == 0
    with sqlite3.connect("films/truth.sqlite") as connection:
        connection.execute("UPDATE documents SET checksum = checksum + 1 WHERE id = 4")
    connection.close()
    _, out, err = run(capsys, "verify", "films")
    assert out == "the metadata of id 4 does not match its checksum\n"
    assert err.splitlines() == [
        "films: 1 problem",
        "set metadata anew with Index.update_metadata(keys, metadata, replace=True) in Python; "
        "or restore the folder from a copy",
    ]
    os.truncate("cut/truth.sqlite", 5000)
    status, out, _ = run(capsys, "verify", "cut")
    assert status == 1
    assert "is damaged" in out


def test_compact_gives_space_back(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Index.open("my", NDIM) as index:
        index.add(range(5000), gaussian(5000, NDIM))
        index.remove(range(4900))
    before = Path("my/truth.sqlite").stat().st_size
    Path("my/snapshot.index").unlink(missing_ok=True)
    status, out, _ = run(capsys, "compact", "my")
    after = Path("my/truth.sqlite").stat().st_size
    assert status == 0
    assert after < before
    assert re.search(rf"truth\.sqlite +{before / 1e3:.1f} kB +{after / 1e3:.1f} kB", out)
    assert re.search(r"snapshot\.index +[\d.]+ kB$", out, re.M)  # none before
    assert run(capsys, "verify", "my")[0] == 0


def test_readers_work_beside_a_writer_and_writers_do_not(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Index.open("films"):
        for arguments in (["search", "films", "q.npy"], ["info", "films"], ["verify", "films"]):
            assert run(capsys, *arguments)[0] == 0
        for arguments in (["compact", "films"], ["build", "films", "v.npy", "--keys", "keys.npy"]):
            message = refused(capsys, *arguments)
            assert f"({os.getpid()}) has it open for writing" in message
            assert "read_only" not in message


def test_neither_rich_nor_pyarrow_is_needed(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] in ("rich", "pyarrow")]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("rich", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(capsys, "build", "my", "v.npy")[0] == 0
    assert run(capsys, "search", "my", "one.npy", "-k", "1")[1].split() == [
        "rank",
        "distance",
        "key",
        "1",
        "0.0000",
        "7",
    ]
    assert run(capsys, "info", "my")[0] == 0
    message = refused(capsys, "build", "other", "v.parquet")
    assert "reading v.parquet needs pyarrow, which is not installed: pip install 'mmfast[parquet]'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("year > 2019", col("year") > 2019),
        ("2019 < year", col("year") > 2019),
        ("1990 <= year < 2000", (col("year") >= 1990) & (col("year") < 2000)),
        ("a == 1 and b != 'x' or not c >= -2.5", ((col("a") == 1) & (col("b") != "x")) | ~(col("c") >= -2.5)),
        ("genre in ['noir', 'drama']", col("genre").is_in(["noir", "drama"])),
        ("year not in (1990, None)", ~col("year").is_in([1990, None])),
        ("'noir' in author . name", col("author.name").contains("noir")),
        ("'noir' not in title", ~col("title").contains("noir")),
        ("title.startswith('A')", col("title").startswith("A")),
        ("seen == True", col("seen") == True),  # noqa: E712
        ("year is None", col("year").is_null()),
        ("year is not None", ~col("year").is_null()),
        ("None != year", ~col("year").is_null()),
        ("col('class no') == 1", col("class no") == 1),
        ("col(['a', 'e.mail']) == 'x'", col(["a", "e.mail"]) == "x"),
        ("  größe < 3\n and\ty == 1", (col("größe") < 3) & (col("y") == 1)),
    ],
)
def test_where_becomes_a_condition(text: str, expected: Any) -> None:
    assert repr(index_where.parse(text)) == repr(expected)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("year >", 7, "ends too early"),
        ("year = 3", 6, "write == to compare"),
        ("a == 1 && b == 2", 9, "write and"),
        ("year >= 1950 OR year < 3", 14, "write or, in lower case"),
        ("(year >= 1950 OR year < 3)", 15, "write or, in lower case"),
        ("title == 'this OR that' AND year > 3", 25, "write and, in lower case"),
        ("NOT year > 3", 1, "write not, in lower case"),
        ("NOT (year > 3)", 1, "write not, in lower case"),
        ("year IN [3, 4]", 6, "write in, in lower case"),
        ("year IS NULL", 6, "write is, in lower case"),
        ("title like 'A%'", 7, "write 'noir' in title for text that contains it, or title.startswith('A')"),
        ("title LIKE 'A%'", 7, "title.startswith('A')"),
        ("year BETWEEN 1990 AND 1999", 6, "write 1990 <= year <= 1999"),
        ("year <> 3", 6, "write != to compare"),
        ("title.contains('noir')", 1, "write 'noir' in title"),
        ("title == 'this OR that", 10, "unterminated"),
        ("(a == 1", 1, "never closed"),
        ("  a > b", 7, "text goes in quotation marks"),
        ("ä == 1 and b > c", 16, "text goes in quotation marks"),
        ("a == true", 6, "write True"),
        ("a > 1 & b < 2", 5, "write and, or, not"),
        ("(a > 1) & (b < 2)", 1, "write and, or, not"),
        ("~(a > 1)", 1, "write and, or, not"),
        ("e-mail == 'x'", 1, "write col('e-mail')"),
        ("seen", 1, "a column is no condition by itself"),
        ("3", 1, "expected a comparison"),
        ("3 > 2", 1, "expected a column"),
        ("a in 3", 6, "in needs a list of values"),
        ("a in [b]", 7, "expected a value"),
        ("a is 3", 6, "compares with None only"),
        ("a > True", 5, "truth values have no order"),
        ("a > 99999999999999999999", 5, "64 bits"),
        ("a > None", 5, "is_null"),
        ("3 in a", 1, "needs a string"),
        ("a == b'x'", 6, "expected a number, text"),
        ("a == 1j", 6, "expected a number, text"),
        ("f'{a}' in b", 1, "expected a number, text"),
        ("__import__('os').system('x') == 1", 1, "expected a column"),
        ("a.b.upper() == 'X'", 1, "expected a column"),
        ("a[0] == 1", 1, "expected a column"),
        ("(lambda: 1)() == 1", 1, "expected a column"),
        ("[x for x in y]", 1, "expected a comparison"),
        ("a == (b := 1)", 7, "expected a number, text"),
        ("a == 1, b == 2", 1, "expected a comparison"),
        ("col('') == 1", 1, "must not be empty"),
        ("col(a) == 1", 5, "col takes a name in quotation marks"),
    ],
)
def test_where_says_what_is_wrong_and_where(text: str, position: int, message: str) -> None:
    with pytest.raises(cli.UserError, match=re.escape(message)) as refusal:
        index_where.parse(text)
    assert f"--where, character {position}" in str(refusal.value)


def test_help_shows_conditions_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["index", "search", "--help"])
    shown = capsys.readouterr().out
    assert index_where.GRAMMAR in shown
    lines = re.findall(r"^  (\S.*?)  +\S", index_where.GRAMMAR, re.M)
    assert len(lines) == 7
    for line in lines:
        for text in re.split(r", (?![^\[]*\])", line):
            index_where.parse(text)


def test_opposites_match_rows_without_the_column(films: Path, vectors: npt.NDArray[np.float32]) -> None:
    with Index.open("films") as index:
        index.add("no year", vectors[0])
        for text in ("year != 1950", "not year > 0", "year not in [1950]", "year is None"):
            assert "no year" in index.search(vectors[0], ROWS, where=index_where.parse(text)).keys, text
        for text in ("year > 0", "year is not None", "year != 1950 and year is not None"):
            assert "no year" not in index.search(vectors[0], ROWS, where=index_where.parse(text)).keys, text


@pytest.mark.parametrize("text", ["", "   ", "not " * 50_000 + "a == 1", "(" * 5000 + "a", "a == 1\0"])
def test_where_refuses_what_python_cannot_read(text: str) -> None:
    with pytest.raises(cli.UserError, match="--where"):
        index_where.parse(text)


@pytest.mark.parametrize("options", [[], ["--out", "r.jsonl"]])
def test_rows_removed_while_they_are_shown_are_an_error_in_words(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    def gone(*_: object) -> None:
        raise KeyError("the index does not hold 'film 7'")

    monkeypatch.setattr(DurableIndex, "metadata", gone)
    message = refused(capsys, "search", "films", "one.npy", *options)
    assert "rows that were found were removed meanwhile by another process; search again" in message


def test_elsewhere_metadata_is_whole(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Index.open("my", NDIM) as index:
        index.add(1, np.ones(NDIM), {"title": "x" * 500})
    assert "x" * 500 in run(capsys, "search", "my", "one.npy")[1]


def test_on_a_terminal_metadata_is_cut_before_what_matters(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run(capsys, "search", "films", "one.npy", "-k", "2")
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 2
    assert re.match(r'│ +1 │ +0\.0000 │ film 7 +│ year: 1957  title: "Night … │', rows[0])
