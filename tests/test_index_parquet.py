"""``mmfast index build`` from .parquet files: which columns become vectors, keys and metadata, and what is refused."""

from __future__ import annotations

import datetime
import decimal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmfast import Index, col
from tests.test_index import gaussian
from tests.test_index_command import refused, run

pyarrow: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, NDIM = 100, 4
VECTORS = gaussian(ROWS, NDIM)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str = "films.parquet", **columns: Any) -> None:
    """Write a table with vectors and what else is given, in several groups of rows."""
    table = {"vector": fixed(VECTORS), "key": [f"film {row}" for row in range(ROWS)], **columns}
    parquet.write_table(pyarrow.table(table), name, row_group_size=30)


def fixed(vectors: npt.NDArray[Any]) -> Any:
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["fixed", "list", "large", "tensor"])
@pytest.mark.parametrize("batch", ["7", "1000"])
def test_vectors_are_lists_of_floats(capsys: pytest.CaptureFixture[str], dtype: str, kind: str, batch: str) -> None:
    vectors = VECTORS.astype(dtype)
    value = pyarrow.from_numpy_dtype(vectors.dtype)
    column = {
        "fixed": lambda: fixed(vectors),
        "list": lambda: pyarrow.array(list(vectors), pyarrow.list_(value)),
        "large": lambda: pyarrow.array(list(vectors), pyarrow.large_list(value)),
        "tensor": lambda: pyarrow.FixedShapeTensorArray.from_numpy_ndarray(vectors),
    }[kind]()
    write(vector=column)
    status, out, err = run(capsys, "build", "my", "films.parquet", "--dtype", "f32", "--metric", "ip", "--batch", batch)
    assert (status, err) == (0, "")
    assert f"{ROWS} rows of {NDIM} features, {dtype}" in out
    with Index.open("my", read_only=True) as index:
        assert index.key_kind == "int"
        np.testing.assert_array_equal(index.get(range(ROWS)), vectors.astype(np.float32))
        assert index.metadata([0]) == [None]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "int32", "uint64"])
def test_keys_are_a_column(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    texts = [f"Film {row}" for row in range(ROWS)]
    numbers = np.arange(ROWS) * 7
    keys = {
        "dictionary": lambda: pyarrow.array(texts).dictionary_encode(),
        "int32": lambda: pyarrow.array(numbers, pyarrow.int32()),
        "uint64": lambda: pyarrow.array(numbers, pyarrow.uint64()),
    }.get(kind, lambda: pyarrow.array(texts, getattr(pyarrow, kind)()))()
    write(key=keys)
    assert run(capsys, "build", "my", "films.parquet", "--keys", "key")[0] == 0
    with Index.open("my", read_only=True) as index:
        assert list(index) == (list(numbers) if "int" in kind else texts)
        assert index.search(VECTORS[3], 1, exact=True).keys.tolist() == [list(index)[3]]


def test_keys_may_come_from_a_file_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    np.save("keys.npy", np.arange(ROWS) + 5)
    assert run(capsys, "build", "my", "films.parquet", "--keys", "keys.npy")[0] == 0
    with Index.open("my", read_only=True) as index:
        assert list(index) == list(range(5, ROWS + 5))


def test_columns_become_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(row) for row in range(ROWS)]
    write(
        year=pyarrow.array([None if row == 1 else 1950 + row for row in range(ROWS)]),
        score=[float("nan") if row == 1 else row / 8 for row in range(ROWS)],
        day=days,
        at=[datetime.datetime(2020, 1, 1, 12, 30)] * ROWS,
        price=[decimal.Decimal("1.5")] * ROWS,
        genre=pyarrow.array(["noir", "drama"] * (ROWS // 2)).dictionary_encode(),
        by=[{"name": f"A{row}", "roles": ["a", "b"]} for row in range(ROWS)],
        cover=[b"\0"] * ROWS,
    )
    options = ["--keys", "key", "--metadata", "year, score,day,at,price,genre,by", "--index", "year,by.name"]
    assert run(capsys, "build", "my", "films.parquet", *options, "--batch", "9")[0] == 0
    common = {"at": "2020-01-01T12:30:00", "price": 1.5}
    with Index.open("my", read_only=True) as index:
        found = index.metadata(["film 1", "film 16"])
        assert found[0] == {"day": "2020-01-02", **common, "genre": "drama", "by": {"name": "A1", "roles": ["a", "b"]}}
        assert found[1] == {
            "year": 1966, "score": 2.0, "day": "2020-01-17", **common, "genre": "noir",
            "by": {"name": "A16", "roles": ["a", "b"]},
        }  # fmt: skip
        assert index.search(VECTORS[0], 1, where=col("year") == 1980).keys.tolist() == ["film 30"]
    where = "day >= '2020-02-01' and genre == 'noir' and by.name != 'A32'"
    np.save("q.npy", VECTORS[32])
    status, _, _ = run(capsys, "search", "my", "q.npy", "-k", "100", "--exact", "--where", where, "--out", "r.npz")
    assert status == 0
    with np.load("r.npz") as result:
        assert sorted(key for key in result["keys"][0] if key) == sorted(f"film {n}" for n in range(34, ROWS, 2))


def test_a_star_means_all_that_can_be_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    write(year=list(range(ROWS)), cover=[b"\0"] * ROWS, title=["x"] * ROWS)
    status, out, _ = run(capsys, "build", "my", "films.parquet", "--keys", "key", "--metadata", "*")
    assert status == 0
    assert "\n--metadata '*' leaves out cover (binary), which JSON does not hold\n" in out
    with Index.open("my", read_only=True) as index:
        assert index.metadata("film 3") == [{"year": 3, "title": "x"}]


def test_what_else_a_star_leaves_out_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    write(year=list(range(ROWS)), cover=[b"\0"] * ROWS, place=[[0.5, 1.5]] * ROWS)
    options = ["--keys", "key", "--column-vector", "vector", "--metadata", "*"]
    status, out, _ = run(capsys, "build", "my", "films.parquet", *options)
    assert status == 0
    assert "leaves out cover (binary), which JSON does not hold; place (list<" in out
    assert "which may be vectors; name them to keep them\n" in out
    status, out, _ = run(capsys, "build", "my", "films.parquet", *options, "--metadata", "place,year", "--upsert")
    assert status == 0
    assert "place (" not in out
    with Index.open("my", read_only=True) as index:
        assert index.metadata("film 3") == [{"year": 3, "place": [0.5, 1.5]}]
    write(year=list(range(ROWS)))
    assert "leaves out" not in run(capsys, "build", "other", "films.parquet", "--metadata", "*")[1]


@pytest.mark.parametrize("keys", ["key", "number"])
def test_an_upsert_keeps_the_columns_that_the_file_does_not_bring(
    capsys: pytest.CaptureFixture[str], keys: str
) -> None:
    write(year=[1950] * ROWS, title=["x"] * ROWS, number=range(ROWS))
    assert run(capsys, "build", "my", "films.parquet", "--keys", keys, "--metadata", "year,title")[0] == 0
    table = {"vector": fixed(VECTORS[:4]), "key": ["film 0", "film 1", "film 2", "new"], "number": [0, 1, 2, 900]}
    years, genres = [1990, None, 1992, 1993], ["noir"] * 4
    parquet.write_table(pyarrow.table({**table, "year": years, "genre": genres}), "more.parquet")
    options = ["--keys", keys, "--metadata", "year,genre", "--upsert", "--batch", "3"]
    assert run(capsys, "build", "my", "more.parquet", *options)[0] == 0
    with Index.open("my", read_only=True) as index:
        assert index.metadata(table[keys]) == [
            {"year": 1990, "title": "x", "genre": "noir"},
            {"year": 1950, "title": "x", "genre": "noir"},  # null in the file says nothing
            {"year": 1992, "title": "x", "genre": "noir"},
            {"year": 1993, "genre": "noir"},
        ]
        assert index.metadata([list(index)[3]]) == [{"year": 1950, "title": "x"}]


def test_columns_may_be_named_in_several_places(capsys: pytest.CaptureFixture[str]) -> None:
    write(year=list(range(ROWS)), title=["x"] * ROWS, genre=["noir"] * ROWS)
    options = [
        "--keys",
        "key",
        "--metadata",
        "year,title",
        "--metadata",
        "genre",
        "--index",
        "year",
        "--index",
        "genre",
    ]
    assert run(capsys, "build", "my", "films.parquet", *options)[0] == 0
    with Index.open("my", read_only=True) as index:
        assert index.metadata("film 3") == [{"year": 3, "title": "x", "genre": "noir"}]
    assert indexed() == {'$."year"', '$."genre"'}
    # What the index has may be indexed later, also where the file brings none of it.
    assert run(capsys, "build", "my", "films.parquet", "--keys", "key", "--index", "title", "--upsert")[0] == 0
    assert indexed() == {'$."year"', '$."genre"', '$."title"'}


def indexed() -> set[str]:
    with sqlite3.connect("my/truth.sqlite") as connection:
        return {path for (path,) in connection.execute("SELECT path FROM indexed")}


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({}, ["--keys", "id"], "--keys: films.parquet has no column 'id'; it has vector (fixed_size_list"),
        ({}, ["--metadata", "key,year"], "--metadata: films.parquet has no column 'year'"),
        ({}, ["--metadata", "key", "--index", "key,year"], "--index: 'year' is not among the columns of the metadata"),
        ({}, ["--column-vector", "v"], "--column-vector: films.parquet has no column 'v'"),
        (
            {},
            ["--column-vector", "key"],
            "column 'key' of films.parquet must hold lists of float16, float32 or float64",
        ),
        ({"vector": [[1, 2]] * ROWS}, [], "name the column of lists of floats with --column-vector"),
        ({"other": [[1.0, 2.0]] * ROWS}, [], "films.parquet has several: vector, other"),
        ({"cover": [b"a"] * ROWS}, ["--metadata", "cover"], "column 'cover' of films.parquet cannot be metadata"),
        (
            {"key": ["a"] * ROWS},
            ["--keys", "key"],
            "column 'key' of films.parquet: keys must be distinct, got a in rows 0",
        ),
        ({"key": [None, *range(1, ROWS)]}, ["--keys", "key"], "must have a key in each row, got null in row 0"),
        ({"key": [0.5] * ROWS}, ["--keys", "key"], "must hold integers or text as keys, got double"),
        ({"key": range(-1, ROWS - 1)}, ["--keys", "key"], "keys must be from 0 to 2**63 - 2, got -1 in rows 0"),
        ({"vector": [None] + [[1.0]] * (ROWS - 1)}, [], "has no vector in its first row"),
        ({"vector": [[1.0]] * (ROWS - 1) + [None]}, [], "has no vector in row 99; drop or mend"),
        (
            {"vector": [[1.0]] * 50 + [[1.0, 2.0]] * 50},
            [],
            "other than 1 features, which the first row has, in rows 50, 51",
        ),
        ({"vector": [[1.0, 2.0]] * 70 + [[1.0, None]] * 30}, [], "has null among the features in rows 70, 71, 72"),
        (
            {"vector": [[1.0, 2.0]] * 70 + [[1.0, float("nan")]] * 30},
            [],
            "NaN or infinity in rows 70, 71, 72, 73, 74 and 25",
        ),
        ({"vector": [[]] * ROWS}, ["--column-vector", "vector"], "must hold lists of float16"),
    ],
)
def test_what_is_wrong_is_said_before_any_row_is_added(
    capsys: pytest.CaptureFixture[str], columns: dict[str, Any], arguments: list[str], message: str
) -> None:
    write(**columns)
    assert message in refused(capsys, "build", "my", "films.parquet", "--batch", "20", *arguments)
    assert not Path("my").exists()


def test_files_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file no.parquet" in refused(capsys, "build", "my", "no.parquet")
    Path("text.parquet").write_text("not a table, though long enough")
    assert "text.parquet cannot be read as a Parquet file" in refused(capsys, "build", "my", "text.parquet")
    write()
    content = bytearray(Path("films.parquet").read_bytes())
    content[4:400] = bytes(396)
    Path("films.parquet").write_bytes(content)
    assert "films.parquet cannot be read as a Parquet file" in refused(capsys, "build", "my", "films.parquet")
