"""What a manifest may hold, every complaint about it, and how its pictures are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmfast.cli import UserError
from mmfast.demo import manifest, pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures: each colour wide and tall, and two files that are none."""
    for colour in ("red", "green", "blue", "black"):
        Image.new("RGB", (40, 20), colour).save(tmp_path / f"{colour}_wide.png")
        Image.new("RGB", (20, 40), colour).save(tmp_path / f"{colour}_tall.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red_wide.png").read_bytes()[:60])
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def problems_of(path: Path) -> list[str]:
    """Return the lines of the complaint about a manifest, the first one (their number) included."""
    with pytest.raises(UserError) as caught:
        manifest.read_manifest(path, progress=False)
    return [line.strip() for line in str(caught.value).splitlines()]


# Manifests


def test_a_csv_manifest_is_read(folder: Path) -> None:
    path = write(
        folder / "m.csv",
        "\ufeffimage, caption",  # as spreadsheets save it
        'red_wide.png,"a red, wide one"',
        "",
        f"{folder}/blue_tall.png,blue\u2028one",
    )
    pairs, files = manifest.read_manifest(path, progress=False)
    assert pairs.texts == ["a red, wide one", "blue\u2028one"]
    assert files == [str(folder / "red_wide.png"), str(folder / "blue_tall.png")]
    assert pairs.labels.tolist() == [0, 1]
    assert pairs.images.shape == (2, 3, 64, 64)
    assert pairs.images[0, :, 32, 32].tolist() == [255, 0, 0]
    assert pairs.images[1, :, 32, 32].tolist() == [0, 0, 255]


def test_a_json_manifest_is_read_and_labels_group_its_rows(folder: Path) -> None:
    rows = [
        {"image": "red_wide.png", "text": "one", "label": 7},
        {"image": "red_tall.png", "text": "two", "label": "7"},
        {"image": "blue_tall.png", "text": "three", "label": -100},
    ]
    pairs, _ = manifest.read_manifest(write(folder / "m.jsonl", *map(json.dumps, rows)), progress=False)
    assert pairs.texts == ["one", "two", "three"]
    assert pairs.labels.tolist() == [0, 0, 1]


def test_without_labels_equal_pictures_or_captions_match(folder: Path) -> None:
    path = write(
        folder / "m.csv",
        "caption,image",
        "a,red_wide.png",
        "b,blue_wide.png",
        "c,red_wide.png",
        "c,green_wide.png",
        "d,black_wide.png",
    )
    assert manifest.read_manifest(path, progress=False)[0].labels.tolist() == [0, 1, 0, 0, 2]


def test_all_problems_of_a_csv_come_together_with_their_lines(folder: Path) -> None:
    path = write(
        folder / "m.csv",
        "image,caption,label",
        "red_wide.png,fine,1",
        "nowhere.png,gone,2",
        "text.png,not a picture,3",
        "red_tall.png,  ,4",
        "cut.png,truncated,5",
        ",nothing,6",
        'blue_tall.png,"over',
        'two lines",',
        "green_tall.png,too,many,fields",
        "cut.png,!?,7",
        "x" * 400 + ",long,8",
    )
    found = problems_of(path)
    assert found[0] == f"10 problems in {path}; mend and run again:"
    expected = [
        r"line 3: image 'nowhere.png' is not there \(looked in .+\)",
        r"line 4: image .*text\.png cannot be decoded: its format is not known",
        r"line 5: caption must have letters or digits, got '  '",
        r"line 6: image .*cut\.png cannot be decoded: .*",
        r"line 7: image must be a path, got ''",
        r"line 8: no label, though line 2 has one; label all lines or none",
        r"line 10: 4 fields where the header has 3; quote fields that hold commas",
        r"line 11: caption must have letters or digits, got '!\?'",
        r"line 11: image .*cut\.png cannot be decoded: .*",
        r"line 12: image 'x+\.\.\.x+' is not there .*",
    ]
    for line, pattern in zip(found[1:], expected, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize(
    ("header", "problems"),
    [
        ("image,caption,image", ["column 'image' comes 2 times"]),
        ("image,caption,lable", ["unknown column 'lable'; the columns are image, caption (or text) and label"]),
        ("caption", ["column 'image' is missing from the header"]),
        ("image,label", ["the header must have one of 'caption' and 'text', got neither"]),
        ("image,caption,text", ["the header must have one of 'caption' and 'text', got both"]),
    ],
)
def test_a_wrong_header_is_one_problem_and_not_one_in_each_line(folder: Path, header: str, problems: list[str]) -> None:
    row = ",".join("red_wide.png" if name == "image" else "words" for name in header.split(","))
    assert problems_of(write(folder / "m.csv", header, row, row))[1:] == [f"line 1: {text}" for text in problems]


def test_all_problems_of_a_json_manifest_come_together(folder: Path) -> None:
    path = write(
        folder / "m.jsonl",
        '{"image": "red_wide.png", "caption": "fine"}',
        '{"image": "red_tall.png", "caption": ',
        '["red_tall.png", "a list"]',
        '{"image": 3, "caption": "a number"}',
        '{"caption": "no picture"}',
        '{"image": "red_tall.png"}',
        '{"image": "red_tall.png", "caption": null}',
        '{"image": "red_tall.png", "caption": "a", "text": "b"}',
        '{"image": "red_tall.png", "caption": "a", "size": 3}',
        '{"image": "red_tall.png", "caption": "a", "size": 3, "label": [1]}',
    )
    found = problems_of(path)
    assert [re.sub(r"(not JSON): .*", r"\1", line) for line in found[1:]] == [
        *(f"line {line}: no label, though line 10 has one; label all lines or none" for line in (1,)),
        "line 2: not JSON",
        "line 3: must be a JSON object, got list",
        "line 4: image must be a path, got 3",
        "line 4: no label, though line 10 has one; label all lines or none",
        "line 5: no image",
        "line 5: no label, though line 10 has one; label all lines or none",
        "line 6: no caption",
        "line 6: no label, though line 10 has one; label all lines or none",
        "line 7: caption must have letters or digits, got None",
        "line 7: no label, though line 10 has one; label all lines or none",
        "line 8: both a caption and a text; give one",
        "line 8: no label, though line 10 has one; label all lines or none",
        "line 9: unknown column 'size'; the columns are image, caption (or text) and label",
        "line 9: no label, though line 10 has one; label all lines or none",
        "line 10: label must be a string or an integer, got [1]",
    ]


def test_many_problems_are_counted(folder: Path) -> None:
    path = write(folder / "m.csv", "image,text", *(f"missing{row}.png,words" for row in range(50)))
    found = problems_of(path)
    assert found[0].startswith("50 problems")
    assert len(found) == 1 + manifest.PROBLEMS_SHOWN + 1
    assert found[-1] == "… and 30 more"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it has no rows"),
        (b"image,caption\n", "it has no rows"),
        (
            b"image,caption\nred_wide.png,caf\xe9\n",
            "line 2: not UTF-8 (invalid continuation byte); save the file in UTF-8",
        ),
        (b'image,caption\nred_wide.png,fine\nred_tall.png,"open\n\n', "line 3: not CSV: unexpected end of data"),
    ],
)
def test_files_that_are_no_csv(folder: Path, content: bytes, problem: str) -> None:
    (folder / "m.csv").write_bytes(content)
    assert problems_of(folder / "m.csv") == [f"1 problem in {folder / 'm.csv'}; mend and run again:", problem]


# Pictures


def test_pictures_are_fitted_into_a_square_upon_white(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), "red").save(tmp_path / "wide.png")
    picture = pictures.read_picture(tmp_path / "wide.png")
    assert picture.shape == (3, 64, 64)
    assert picture.dtype == torch.uint8
    assert picture[:, 32, 0].tolist() == [255, 0, 0]
    assert (picture[:, :15] == 255).all()
    assert (picture[:, -15:] == 255).all()
    assert pictures.read_picture(tmp_path / "wide.png", 16).shape == (3, 16, 16)


def test_transparent_turned_and_printed_pictures(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (pictures.read_picture(tmp_path / "clear.png") == 255).all()

    turned = Image.new("RGB", (40, 80), "blue")
    turned.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: what is on top comes to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    row = pictures.read_picture(tmp_path / "turned.png")[:, 32]
    assert row[:, 5].tolist() == [0, 0, 255]
    assert row[:, 58].tolist() == [255, 0, 0]

    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "print.jpg")
    assert pictures.read_picture(tmp_path / "print.jpg").float().mean() < 60


def test_deep_pictures_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(pictures.UnreadableError, match="more than 8 bits per channel"):
        pictures.read_picture(tmp_path / "deep.png")
