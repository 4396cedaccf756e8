"""The core of the demo: hashing, data, the model, its training and the scores, on pictures that need no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import mmfast.reference
from mmfast import cli
from mmfast.demo import augment, digits, download, emoji, evaluation, muon, text, training
from mmfast.demo.models import CaptionEncoder, JointModel, as_float_pictures
from mmfast.demo.pairs import Dataset, Pairs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def handwriting() -> Dataset:
    return digits.load()


def some(pairs: Pairs, rows: int) -> Pairs:
    return Pairs(pairs.images[:rows], pairs.texts[:rows], pairs.labels[:rows])


# Text


def buckets(phrase: str) -> set[int]:
    return {bucket for bucket, _ in text.hashed_features(phrase)}


def test_hashing_is_the_same_in_every_process() -> None:
    program = "from mmfast.demo import text; print(text.hashed_features('red heart'))"
    # Python's own hash would depend on this seed.
    run = subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": "1"}, capture_output=True, check=True)
    assert run.stdout.decode() == f"{text.hashed_features('red heart')}\n"


def test_words_share_character_ngrams_and_their_order_counts() -> None:
    assert len(buckets("heart") & buckets("hearts")) >= 5
    assert not buckets("heart") & buckets("zebra")
    assert buckets("red heart") != buckets("heart red")


def test_every_phrase_weighs_nearly_the_same() -> None:
    weights = text.hashed_features("a very long name of some emoji, CAT;")
    assert sum(weight for _, weight in weights) == pytest.approx(1)
    share = sum(weight for bucket, weight in weights if bucket in buckets("cat"))
    # A phrase of one word has no bigrams, and so a little less weight than the long one.
    assert share == pytest.approx((text.WORDS + text.NGRAMS) / (1 + text.WORDS + text.NGRAMS))


def test_bags_lay_features_end_to_end() -> None:
    flat, offsets, weights = text.bags(["red heart", "", "cat"])
    first, last = text.hashed_features("red heart"), text.hashed_features("cat")
    assert list(zip(flat.tolist(), weights.tolist(), strict=True)) == [(b, pytest.approx(w)) for b, w in first + last]
    assert offsets.tolist() == [0, len(first), len(first)]
    assert [len(tensor) for tensor in text.bags([""])] == [0, 1, 0]


def test_words_never_trained_on_say_nothing_unless_there_are_no_others() -> None:
    encoder = CaptionEncoder(8)
    encoder(["red rose"])
    encoder.eval()
    rose, unknown, both = encoder(["rose", "zebra", "rose, zebra"])
    torch.testing.assert_close(both, rose, rtol=1e-4, atol=1e-6)
    assert (unknown - rose).norm() > 0.1 * rose.norm()


def test_a_caption_without_words_still_has_an_embedding() -> None:
    words, nothing = CaptionEncoder(8)(["rose", "?!"])
    assert nothing.isfinite().all()
    assert not torch.equal(words, nothing)


# Variations


def test_variations_of_pictures_keep_shape_and_range_and_differ() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 4, 64, 64), dtype=torch.uint8)
    before = images.clone()
    varied = augment.vary_pictures(images)
    assert varied.shape == (6, 3, 64, 64)
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert not torch.equal(varied, augment.vary_pictures(images))
    assert torch.equal(images, before)


def test_pictures_without_any_opaque_pixel_show_nothing_of_their_colours() -> None:
    torch.manual_seed(0)
    hidden = torch.randint(0, 256, (8, 4, 32, 32), dtype=torch.uint8)
    hidden[:, 3] = 0
    varied = augment.vary_pictures(hidden)
    assert torch.equal(varied, varied[:, :, :1, :1].expand_as(varied))
    assert torch.equal(as_float_pictures(hidden), torch.ones(8, 3, 32, 32))


def test_varied_captions_keep_words_of_the_caption_and_never_lose_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "DROPPED_WORDS", 0.9)
    rng = random.Random(0)
    varied = [augment.vary_caption("heavy black heart, heart", rng) for _ in range(100)]
    assert all(set(text.clean(caption).split()) <= {"heavy", "black", "heart"} for caption in varied)
    assert all(text.clean(caption) for caption in varied)
    assert len(set(varied)) > 1


# Losses


@pytest.mark.parametrize("loss", training.LOSSES)
def test_joint_loss_is_hinge_plus_cross_entropy(loss: training.Loss) -> None:
    torch.manual_seed(0)
    images = F.normalize(torch.randn(12, 8, dtype=torch.float64), dim=1).requires_grad_()
    texts = F.normalize(torch.randn(12, 8, dtype=torch.float64), dim=1).requires_grad_()
    labels = torch.arange(12)
    hinge = mmfast.reference.contrastive_loss(images, labels, texts, labels, reduction="mean_nonzero")
    logits = 5.0 * images @ texts.T
    infonce = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    expected = {"hinge": hinge, "infonce": infonce, "both": training.HINGE_WEIGHT * hinge + infonce}[loss]

    found = training.joint_loss(images, texts, labels, loss, logit_scale=5.0)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(found.total, (images, texts))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (images, texts)), rtol=1e-10, atol=1e-14)
    assert isnan(found.hinge) == (loss == "infonce")
    assert isnan(found.infonce) == (loss == "hinge")


def test_cross_entropy_aims_at_every_match_equally() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1) for _ in range(2))
    labels = torch.tensor([7, 3, 7, 5])
    log_rows = (3 * images @ texts.T).log_softmax(dim=1)
    log_columns = (3 * texts @ images.T).log_softmax(dim=1)
    per_row = [
        (log[0, 0] + log[0, 2]) / 2 + log[1, 1] + (log[2, 0] + log[2, 2]) / 2 + log[3, 3]
        for log in (log_rows, log_columns)
    ]
    expected = -(per_row[0] + per_row[1]) / 8
    torch.testing.assert_close(training.symmetric_cross_entropy(images, texts, labels, 3.0), expected)


# Training and scoring


def test_digits_are_learned_and_a_second_run_repeats_the_first(handwriting: Dataset) -> None:
    pairs = some(handwriting.train, 800)
    runs = []
    for _ in range(2):
        model = JointModel.for_pairs(pairs, seed=3)
        history = training.train(model, pairs, epochs=4, batch_size=64, seed=3, progress=False)
        runs.append((model, history))
    (model, history), (again, history_again) = runs
    assert [replace(epoch, seconds=0.0) for epoch in history] == [
        replace(epoch, seconds=0.0) for epoch in history_again
    ]
    for tensor, tensor_again in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, tensor_again)
    assert history[-1].hinge < history[0].hinge
    assert history[-1].infonce < history[0].infonce

    for split, held_out in handwriting.splits.items():
        for recall in evaluation.score(split, *model.encode(held_out), held_out.labels):
            assert recall.candidates == len(held_out)
            assert recall.at[1] > 3 * recall.chance[1]


def test_training_leaves_the_callers_random_state_alone(handwriting: Dataset) -> None:
    pairs = some(handwriting.train, 8)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    training.train(JointModel.for_pairs(pairs), pairs, epochs=1, batch_size=8, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_told_also_without_a_terminal(
    handwriting: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "TOLD", 2)
    pairs = some(handwriting.train, 8)
    training.train(JointModel.for_pairs(pairs), pairs, epochs=5, batch_size=8)
    told = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d\.\d{3}", "*", line) for line in told] == [f"epoch {n}/5  hinge *  infonce *" for n in (2, 4)]


def test_keywords_of_groups_are_learned_beside_captions_that_do_not_hold_them(handwriting: Dataset) -> None:
    pairs = some(handwriting.train, 800)
    words = [digits.WORDS[label] for label in pairs.labels.tolist()]
    numbers = [f"number {row * 7919}" for row in range(len(pairs))]
    model = JointModel.for_pairs(pairs, seed=3)
    own_caption_each = Pairs(pairs.images, numbers, torch.arange(len(pairs)), groups=words)
    training.train(model, own_caption_each, epochs=4, batch_size=64, progress=False)
    held_out = handwriting.splits["held-out digits"]
    keywords = [digits.WORDS[label] for label in held_out.labels.tolist()]
    images, texts = model.encode(replace(held_out, texts=keywords))
    for recall in evaluation.score("keywords", images, texts, held_out.labels):
        assert recall.at[1] > 3 * recall.chance[1]


def test_pairs_of_unequal_lengths_are_refused() -> None:
    images, labels = torch.zeros(3, 2), torch.arange(3)
    with pytest.raises(ValueError, match="one row per pair, got 3, 2 and 3"):
        Pairs(images, ["a", "b"], labels)
    with pytest.raises(ValueError, match="one entry per pair, got 1 for 3 pairs"):
        Pairs(images, ["a", "b", "c"], labels, groups=["letters"])


def test_features_of_pretrained_encoders_are_learned() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 16)
    pairs = Pairs(hidden @ torch.randn(16, 40), hidden @ torch.randn(16, 24), torch.arange(300))
    model = JointModel.for_pairs(some(pairs, 200))
    training.train(model, some(pairs, 200), epochs=40, batch_size=100, progress=False)
    unseen = Pairs(pairs.images[200:], pairs.texts[200:], pairs.labels[200:])
    for recall in evaluation.score("unseen", *model.encode(unseen), unseen.labels):
        assert recall.at[10] > 3 * recall.chance[10]


def test_a_saved_model_embeds_as_before(tmp_path: Path, handwriting: Dataset) -> None:
    pairs = some(handwriting.train, 32)
    model = JointModel.for_pairs(pairs, joint=16)
    training.train(model, pairs, epochs=1, batch_size=16, progress=False)
    model.save(tmp_path / "checkpoint.pt")
    loaded = JointModel.load(tmp_path / "checkpoint.pt")
    assert loaded.joint == 16
    for embeddings, expected in zip(loaded.encode(pairs), model.encode(pairs), strict=True):
        assert torch.equal(embeddings, expected)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(32))


def test_scores_count_hits_by_label_and_know_chance() -> None:
    # Two classes of two rows, at right angles, then one text put among the images of the other class.
    images = torch.eye(4)[[0, 0, 1, 1]]
    texts = torch.eye(4)[[0, 0, 1, 0]]
    labels = torch.tensor([0, 0, 1, 1])
    to_image, to_text = evaluation.score("all", images, texts, labels)
    assert (to_image.direction, to_text.direction) == ("text → image", "image → text")
    assert to_image.at == {1: 0.75, 5: 1.0, 10: 1.0}
    # 2 of 4 candidates match: by chance 1/2 at k = 1, and certainly once all are looked at.
    assert to_image.chance == {1: pytest.approx(0.5), 5: 1.0, 10: 1.0}


def test_chance_is_what_random_embeddings_reach() -> None:
    torch.manual_seed(0)
    labels = torch.arange(2000) % 400
    images, texts = F.normalize(torch.randn(2, 2000, 32), dim=2)
    for recall in evaluation.score("random", images, texts, labels):
        for k in evaluation.AT:
            # Six standard deviations of a share among 2,000 queries.
            assert abs(recall.at[k] - recall.chance[k]) < 6 * (recall.chance[k] / 2000) ** 0.5


# Emoji


def archive(path: Path, studio: str, entries: list[dict[str, Any]], extra: dict[str, bytes] | None = None) -> Path:
    """Pack what npm would have brought: emoji.json and drawings, one colour per studio and emoji."""
    files = {"package/emoji.json": json.dumps(entries).encode(), **(extra or {})}
    for number, entry in enumerate(entries):
        png = io.BytesIO()
        colour = (10 * number, 255 if studio == "google" else 0, 7, 255 if number else 0)
        Image.new("RGBA", (64, 64), colour).save(png, "PNG")
        files[f"package/img/{studio}/64/{entry['image']}"] = png.getvalue()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def entry(number: int, name: str, *short_names: str) -> dict[str, Any]:
    return {
        "name": name,
        "short_names": list(short_names),
        "image": f"{number:04x}.png",
        "category": "Things & More",
        "subcategory": "some-thing",
    }


ENTRIES = [
    entry(1, "HEAVY BLACK HEART", "heart"),
    entry(2, "Greenland Flag", "flag-gl"),
    entry(3, "FAMILY: MAN, BOY", "man-boy"),
    entry(4, "ROSE", "rose"),
    entry(5, "FLY", "fly"),
]


def test_emoji_are_read_and_split_without_leaks(tmp_path: Path) -> None:
    only_google = entry(6, "ONLY ONE STUDIO", "lonely")
    outside = {"package/../../evil.png": b"", "/etc/evil": b""}
    google = archive(tmp_path / "google.tgz", "google", [*ENTRIES, only_google], outside)
    twitter = archive(tmp_path / "twitter.tgz", "twitter", ENTRIES)
    dataset = emoji.from_archives(google, twitter)
    artist, unseen, unseen_google = dataset.splits.values()

    assert list(dataset.splits) == ["unseen artist", "unseen emoji", "unseen emoji, seen artist"]
    assert (len(dataset.train), len(artist), len(unseen)) == (4, 4, 1)
    assert unseen_google.texts == unseen.texts
    assert not {*dataset.train.texts} & {*unseen.texts}
    assert not {*dataset.train.labels.tolist()} & {*unseen.labels.tolist()}
    assert {*dataset.train.texts, *unseen.texts} == {
        f"{names}, some thing, things more"
        for names in ("heavy black heart, heart", "greenland flag, flag gl", "family man boy, man boy", "rose", "fly")
    }
    assert dataset.train.texts == artist.texts
    assert dataset.train.groups == ["some thing"] * 4
    assert dataset.train.images.shape == (4, 4, 64, 64)  # with alpha
    # Each label is a row of the sorted emoji, and its drawing has that row's colour and its studio's; the first one is
    # transparent, so that nothing but the white behind it shows. The others fill all but a narrow margin.
    for pairs, green in ((dataset.train, 255), (artist, 0), (unseen, 0), (unseen_google, 255)):
        pictures = (as_float_pictures(pairs.images) * 255).round().int()
        for picture, label in zip(pictures, pairs.labels.tolist(), strict=True):
            assert picture[:, 30, 30].tolist() == ([10 * label, green, 7] if label else [255, 255, 255])
            assert picture[:, 1, 1].tolist() == [255, 255, 255]
    assert {path.name for path in tmp_path.iterdir()} == {"google.tgz", "twitter.tgz"}


def test_the_split_follows_its_seed(tmp_path: Path) -> None:
    google = archive(tmp_path / "google.tgz", "google", ENTRIES)
    twitter = archive(tmp_path / "twitter.tgz", "twitter", ENTRIES)
    held_out = [emoji.from_archives(google, twitter, seed).splits["unseen emoji"].texts for seed in (0, 0, *range(9))]
    assert held_out[0] == held_out[1]
    assert any(texts != held_out[0] for texts in held_out)


# Download


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for npm: a program that packs the content of the file it lies beside."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path(__file__).parent\n"
        'name, _, version = sys.argv[-1].rpartition("@")\n'
        'pathlib.Path(sys.argv[-2], f"{name}-{version}.tgz").write_bytes((here / "content").read_bytes())\n'
        'with (here / "calls").open("a") as calls: calls.write(name + "\\n")\n'
    )
    program.chmod(0o755)
    (folder / "content").write_bytes(b"an archive")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def package(content: bytes) -> download.Package:
    return download.Package("thing", "1.0.0", base64.b64encode(hashlib.sha512(content).digest()).decode(), 1)


def test_an_archive_is_fetched_once_and_again_when_damaged(npm: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        [path] = download.fetch([package(b"an archive")], cache, progress=False)
        assert path.read_bytes() == b"an archive"
    assert (npm / "calls").read_text().split() == ["thing"]
    path.write_bytes(b"tampered with")
    download.fetch([package(b"an archive")], cache, progress=False)
    assert path.read_bytes() == b"an archive"
    assert (npm / "calls").read_text().split() == ["thing", "thing"]
    assert [entry.name for entry in cache.iterdir()] == ["thing-1.0.0.tgz"]


@pytest.mark.usefixtures("npm")
def test_a_tampered_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(download.DownloadError, match=r"thing-1\.0\.0\.tgz arrived damaged"):
        download.fetch([package(b"another archive")], tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_npm_errors_are_passed_on(npm: Path, tmp_path: Path) -> None:
    (npm / "npm").write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    with pytest.raises(download.DownloadError, match="npm pack thing failed: npm error network unreachable"):
        download.fetch([package(b"")], tmp_path / "cache", progress=False)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(download.DownloadError, match=r"the cache folder .*file.* cannot be used"):
        download.fetch([package(b"")], tmp_path / "file", progress=False)


def test_without_npm_the_demo_says_so_and_goes_on_with_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(emoji.EmojiUnavailable, match="npm is not installed"):
        emoji.load(tmp_path / "cache", progress=False)
    monkeypatch.setattr(digits, "load", lambda: _tiny(digits_load()))
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--epochs", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "npm is not installed" in printed
    assert "Going on with scikit-learn's digits" in printed
    assert printed.index("text → image") < printed.index("double loop over pairs") < printed.index("Report:")
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: must be an integer from 1 to 2,147,483,647, got 0"),
        (["--batch-size", "many"], "--batch-size: must be an integer from 2 to 2,147,483,647, got many"),
        (["--batch-size", "1"], "--batch-size: must be an integer from 2 to 2,147,483,647, got 1"),
        (["--seed", "9" * 20], "--seed: must be an integer from 0 to"),
        (["--seed", "-1"], "--seed: must be an integer from 0 to"),
        (["--loss", "triplet"], "invalid choice: 'triplet'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", *arguments])
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert cli.main(["demo", "--data", "digits", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.slow
def test_a_few_epochs_of_emoji_beat_chance() -> None:
    try:
        dataset = emoji.load(progress=False)
    except emoji.EmojiUnavailable as error:
        pytest.skip(f"the emoji cannot be had: {error}")
    model = JointModel.for_pairs(dataset.train)
    training.train(model, dataset.train, epochs=8, batch_size=64, progress=False)
    for split, pairs in dataset.splits.items():
        for recall in evaluation.score(split, *model.encode(pairs), pairs.labels):
            assert recall.at[10] > 3 * recall.chance[10]


digits_load = digits.load


def _tiny(dataset: Dataset) -> Dataset:
    return replace(
        dataset, train=some(dataset.train, 64), splits={name: some(p, 32) for name, p in dataset.splits.items()}
    )


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 4, 3, 3)])
def test_a_step_of_muon_has_singular_values_of_about_one(shape: tuple[int, ...]) -> None:
    step = muon.orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4)
    singular = torch.linalg.svdvals(step.flatten(1))
    assert step.shape == shape
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_muon_finds_a_linear_map_and_leaves_weights_without_a_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(64, 8, generator=generator), torch.randn(4, 8, generator=generator)
    weight, idle = torch.zeros(4, 8, requires_grad=True), torch.ones(4, 8, requires_grad=True)
    optimizer = muon.Muon([weight, idle], lr=0.1)
    for number in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - number / 200)
        optimizer.zero_grad()
        (inputs @ (weight - wanted).T).square().mean().backward()
        optimizer.step()
    assert (weight - wanted).abs().max() < 0.05
    assert torch.equal(idle, torch.ones(4, 8))
