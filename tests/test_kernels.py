"""The Triton kernels, interpreted on tensors of the CPU: some tests are the CPU engine's, the others theirs alone.

On a GPU `make bench-gpu` compares what is compiled with float64 before it times it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmfast
from mmfast import backends, reference
from tests import oracle
from tests import test_pair_hinge as cpu
from tests.oracle import Problem, assert_exact, cast, loss_and_gradients, problem

pytest.importorskip("triton")
from triton.runtime import interpreter

from mmfast.kernels import classes, configs, negatives
from mmfast.kernels import pair_hinge as host
from mmfast.kernels import screen as screen_module
from mmfast.kernels.configs import CONFIGS
from mmfast.kernels.frame import STEPS

# Interpreted, arithmetic is NumPy's, which warns where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

REDUCTIONS = cpu.REDUCTIONS


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(backends, "forced", "triton")
    monkeypatch.setattr(oracle, "ROUNDINGS", kernel_roundings())


def kernel_roundings() -> dict[torch.dtype, dict[str, int]]:
    return {dtype: {"unit": steps.UNIT_BITS, "margin": steps.MARGIN_BITS} for dtype, steps in STEPS.items()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Copies of the masks of every block of pairs, as it was screened."""
    masks: list[Any] = []
    screen_block = negatives.screen_block

    def remember(*arguments: Any) -> Any:
        result = screen_block(*arguments)
        masks.append(negatives.Masks(*(mask.clone() for mask in result)))
        return result

    monkeypatch.setattr(negatives, "screen_block", remember)
    return masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ref_rows", [None, 33])
def test_both_forms(ref_rows: int | None, dtype: torch.dtype) -> None:
    assert_exact(problem(70, 33, ref_rows=ref_rows, margin=1.8), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "features"), [(65, 63), (1, 16), (0, 16), (5, 0), (40, 1)])
@pytest.mark.parametrize("ref_rows", [None, 0, 33])
def test_every_shape(rows: int, features: int, ref_rows: int | None) -> None:
    for margin, dtype in ((1.9, torch.float32), (0.5, torch.float64)):
        assert_exact(problem(rows, features, ref_rows=ref_rows, margin=margin, reduction="mean_nonzero"), dtype)


def test_margins_of_zero_and_beyond_every_distance() -> None:
    for margin in (0.0, 50.0):
        assert_exact(problem(60, 20, margin=margin))
        assert_exact(problem(30, 20, ref_rows=40, margin=margin), torch.float64)


test_ignored_rows_take_no_part = cpu.test_ignored_rows_take_no_part
test_all_labels_equal_and_all_different = pytest.mark.slow(cpu.test_all_labels_equal_and_all_different)
test_inputs_stay_as_they_are = cpu.test_inputs_stay_as_they_are
test_what_is_not_finite_makes_the_result_nan = cpu.test_what_is_not_finite_makes_the_result_nan


@pytest.mark.slow
class TestAdversarial:
    """Those of the CPU engine that fit the interpreter's pace; `make test-gpu` has them all."""

    theirs = cpu.TestAdversarial
    test_ties_at_the_margin = theirs.test_ties_at_the_margin
    test_one_rounding_either_side_of_the_margin = theirs.test_one_rounding_either_side_of_the_margin
    test_scales_of_float64 = theirs.test_scales_of_float64
    test_what_overflows_is_infinite_as_in_pytorch = theirs.test_what_overflows_is_infinite_as_in_pytorch
    test_a_margin_near_the_largest_float = theirs.test_a_margin_near_the_largest_float
    test_denormals = theirs.test_denormals


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("ref_rows", [None, 60])
def test_tiles_with_many_active_pairs(share: float, ref_rows: int | None, seen: list[Any]) -> None:
    p = problem(100, 40, classes=30, ref_rows=ref_rows)
    d2 = torch.cdist(p["embeddings"], p["embeddings"] if ref_rows is None else p["ref_emb"]).square()
    p["margin"] = 1e-9 + float(d2[d2 > 0].quantile(share))
    assert_exact(p)
    if share >= 0.1:
        assert any(bool(masks.dense.any()) for masks in seen)


def test_several_blocks_of_pairs(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    monkeypatch.setattr(negatives, "BLOCK_ROWS", 64)
    assert_exact(problem(150, 24, margin=1.7))
    assert len(seen) == 6  # 3 by 3, of which those below the diagonal are the others seen from behind
    assert_exact(problem(70, 24, ref_rows=130, margin=1.7, reduction="mean_nonzero"))
    assert len(seen) == 6 + 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("ref_rows", [None, 100])
def test_products_by_the_vendors_library_give_the_same(ref_rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "BLOCK_ROWS", 128)
    monkeypatch.setattr(negatives, "CHUNK_ROWS", 64)
    p = cast(problem(150, 24, ref_rows=ref_rows, margin=1.7), torch.float32)
    results = []
    for name in ("fused", "chunked"):
        monkeypatch.setenv("MMFAST_SCREEN", name)
        results.append(loss_and_gradients(mmfast.contrastive_loss, p))
    (loss, gradients), (other, others) = results
    torch.testing.assert_close(loss, other)
    for ours, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # summed in other blocks
    assert_exact(p)
    monkeypatch.setenv("MMFAST_SCREEN", "slow")
    with pytest.raises(ValueError, match="MMFAST_SCREEN must be one of fused, chunked, got 'slow'"):
        mmfast.contrastive_loss(**p)


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Which tiles can hold an active pair, for each call; tiles are ruled out in small batches too."""
    found: list[torch.Tensor] = []
    near_tiles = negatives.near_tiles

    def remember(x: Any, y: Any, *arguments: Any) -> torch.Tensor:
        found.append(near_tiles(x, y, *arguments))
        rows, columns = (side.padded // CONFIGS["interpreter"].tile_m for side in (x, y))
        found[-1] = found[-1][:rows, :columns]
        return found[-1].contiguous()

    monkeypatch.setattr(negatives, "near_tiles", remember)
    monkeypatch.setattr(negatives, "LEAST_TILES", 1)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ref_rows", [None, 150])
def test_classes_far_apart_but_for_some_rows(
    ref_rows: int | None, dtype: torch.dtype, near: list[torch.Tensor]
) -> None:
    """Whole tiles are ruled out, which must not lose the rows that lie among another class."""
    p = problem(200, 24, classes=6, ref_rows=ref_rows, margin=1.0)
    centres = 3 * torch.randn(6, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = p["embeddings"]
    p["embeddings"] = centres[p["labels"]] + 0.05 * noise
    p["embeddings"][::67] = centres[0] + 0.3 * noise[::67]
    if ref_rows:
        p["ref_emb"] = centres[p["ref_labels"]] + 0.05 * p["ref_emb"]
    assert_exact(p, dtype)
    (tiles,) = near
    assert 0 < int(tiles.count_nonzero()) < 0.7 * tiles.numel()


@pytest.mark.slow
def test_tiles_of_many_classes_are_not_ruled_out(near: list[torch.Tensor]) -> None:
    """More runs in a tile than there are balls for, beside tiles of one class."""
    p = problem(190, 12, margin=1.5)
    p["labels"] = torch.cat([torch.arange(60), torch.full((70,), 60), torch.full((60,), 61)])
    p["embeddings"][60:130] += 5
    assert_exact({**p, "margin": 1.5})
    assert_exact({**p, "margin": 40.0, "ignore_index": 60})
    first, second = near
    assert first[0, 1:].all()
    assert not first.all()
    assert second[0, 1]
    assert not second[0, 2]  # of ignored rows alone


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])  # the others have their blocks
def test_every_configuration(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "config_for", lambda _: CONFIGS[architecture])
    monkeypatch.setattr(negatives, "LEAST_TILES", 1)
    assert_exact(problem(140, 300, classes=20, margin=1.9))


@pytest.mark.slow
def test_a_queue_that_is_written_round_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs looked at one by one: a word of a row's bits at a time, and many more bits than there are places."""
    config = CONFIGS["interpreter"]._replace(pairs=configs.Pairs(4, 1, 64, 4, 3))
    monkeypatch.setattr(host, "config_for", lambda _: config)
    monkeypatch.setattr(screen_module, "_DENSE", configs.triton.language.constexpr(2.0))  # no tile is refined
    assert_exact(problem(9, 5, classes=9, ref_rows=150, margin=1e3))


def test_the_autotuner_is_asked_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["sm_90"]
    choices = [choice.options(512) for choice in (config.screen, *config.other_screens)]
    assert configs.tuned(negatives.screen, choices, ["depth"]) == (negatives.screen, choices[0])
    monkeypatch.setenv(configs.AUTOTUNE_VARIABLE, "1")
    monkeypatch.setattr(configs.triton.knobs.runtime, "interpret", False)
    tuner, rest = configs.tuned(negatives.screen, choices, ["depth"])
    assert rest == {"enable_fp_fusion": False}
    assert [(c.kwargs["BLOCK_K"], c.num_warps, c.num_stages) for c in tuner.configs] == [
        (128, 4, 3),
        (64, 4, 3),
    ]
    assert configs.tuned(negatives.screen, choices, ["depth"])[0] is tuner


def test_the_device_decides_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = mock.Mock(device=torch.device("cuda", 0))
    found = {(8, 0): "sm_80", (8, 6): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90", (10, 0): "sm_100", (12, 0): "sm_120"}
    for capability, row in found.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert configs.architecture(on_gpu) == row
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert configs.architecture(on_gpu) == "gfx942"
    assert configs.architecture(torch.empty(0)) == "interpreter"


@pytest.mark.parametrize("kernel", ["screen", "refine", "products"])
def test_every_alternative_of_the_autotuner_is_interpreted(kernel: str) -> None:
    """In what some configuration chooses: interpreted, warps and stages are nothing, and blocks are what is left."""
    chosen = {getattr(config, kernel).block_k for config in CONFIGS.values()}
    others = {"screen": "other_screens", "refine": "other_refines", "products": "other_products"}[kernel]
    assert {part.block_k for config in CONFIGS.values() for part in getattr(config, others)} <= chosen


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Have programs run in another order from when it is called on; some grid must then have had more than one."""
    in_order = interpreter.interpreter_builder.set_grid_idx
    orders: dict[int, list[int]] = {}

    def permuted(*place: int) -> None:
        counts = interpreter.interpreter_builder.grid_dim
        generator = torch.Generator().manual_seed(0)
        for count in counts:
            if count not in orders:
                orders[count] = torch.randperm(count, generator=generator).tolist()
        in_order(*(orders[count][i] for i, count in zip(place, counts, strict=True)))

    yield lambda: monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", permuted)
    assert any(order != sorted(order) for order in orders.values())


def assert_order_changes_no_bit(p: Problem, shuffle: Callable[[], None]) -> None:
    expected, expected_gradients = loss_and_gradients(mmfast.contrastive_loss, p)
    shuffle()
    loss, gradients = loss_and_gradients(mmfast.contrastive_loss, p)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("ref_rows", [None, 70])
def test_the_order_of_programs_changes_no_bit(ref_rows: int | None, shuffled: Callable[[], None]) -> None:
    p = problem(110, 80, ref_rows=ref_rows, margin=1.7, reduction="mean_nonzero")
    assert_order_changes_no_bit(cast(p, torch.float32), shuffled)


class TestLongClasses:
    """Classes of more rows than one program takes, cut into parts."""

    def problem(self, sizes: list[int], ref_sizes: list[int] | None) -> Problem:
        """Rows far from the origin, so that a mean of squares would lose what the squares of deviations keep."""
        p = problem(sum(sizes), 9, ref_rows=None if ref_sizes is None else sum(ref_sizes), margin=0.0)
        for rows, labels, counts in (("embeddings", "labels", sizes), ("ref_emb", "ref_labels", ref_sizes)):
            if counts is not None:
                p[rows] = p[rows] + 1000
                drawn = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
                p[labels] = drawn[torch.randperm(len(drawn), generator=torch.Generator().manual_seed(1))]
        return p

    @pytest.mark.parametrize(
        ("sizes", "ref_sizes"),
        [
            ([64, 3, 17, 16, 1, 33], None),  # whole parts, parts of few rows, and no parts
            ([17, 17, 20, 15], None),  # one class ends in a part and the next begins with one, within 16 rows
            ([17], [49]),
            ([1, 40, 0, 5], [70, 2, 20, 0]),  # long on one side alone, and on one side only
            ([40, 6], [3, 33]),
        ],
    )
    def test_parts(self, sizes: list[int], ref_sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(classes, "PART_ROWS", 16)
        for dtype in (torch.float64, torch.float32):
            assert_exact(self.problem(sizes, ref_sizes), dtype)
        ignored = self.problem(sizes, ref_sizes)
        assert_exact({**ignored, "ignore_index": 0, "margin": 1.0, "reduction": "mean_nonzero"})

    @pytest.mark.parametrize("ref_sizes", [None, [37, 50, 2]])
    def test_the_order_of_programs_changes_no_bit(
        self, ref_sizes: list[int] | None, shuffled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(classes, "PART_ROWS", 16)
        assert_order_changes_no_bit(self.problem([50, 3, 33], ref_sizes), shuffled)

    def test_nothing_beyond_a_tensor(self, guarded: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(classes, "PART_ROWS", 16)
        assert_exact(self.problem([50, 3, 33], [37, 50, 2]))
        assert len(guarded) > 10

    def test_one_class_of_the_whole_batch(self) -> None:
        assert_exact(self.problem([2 * classes.PART_ROWS + 50], None), torch.float64)


GUARD = 512  # elements before and behind a tensor


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The rows, and what is allocated beside them, lie between NaNs, or numbers as odd, which must stay as they are."""
    allocated: list[torch.Tensor] = []

    def guards(whole: torch.Tensor) -> torch.Tensor:
        return torch.cat([whole[:GUARD], whole[-GUARD:]])

    def place(shape: Any, dtype: torch.dtype, fill: Any) -> torch.Tensor:
        odd = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min + 3
        size = int(torch.Size(shape).numel())
        whole = torch.full((size + 2 * GUARD,), odd, dtype=dtype)
        allocated.append(whole)
        inside = whole[GUARD : GUARD + size].view(shape)
        return inside if fill is None else inside.fill_(fill)

    def shaped(fill: Any) -> Any:
        def new(like: torch.Tensor, *shape: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
            shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
            return place(shape, dtype or like.dtype, fill)

        return new

    monkeypatch.setattr(torch.Tensor, "new_empty", shaped(None))
    monkeypatch.setattr(torch.Tensor, "new_zeros", shaped(0))
    yield allocated
    for whole in allocated:
        edges = guards(whole)
        odd = edges.isnan() if whole.dtype.is_floating_point else edges == torch.iinfo(whole.dtype).min + 3
        assert bool(odd.all()), f"written beyond {whole.numel() - 2 * GUARD} elements of {whole.dtype}"


@pytest.mark.parametrize("ref_rows", [None, 41])
@pytest.mark.parametrize(("rows", "features"), [(67, 45), (33, 64), (5, 1)])
def test_nothing_beyond_a_tensor_is_read_or_written(
    rows: int, features: int, ref_rows: int | None, guarded: list[torch.Tensor]
) -> None:
    for dtype in (torch.float32, torch.float64):
        assert_exact(problem(rows, features, ref_rows=ref_rows, margin=1.7, reduction="mean_nonzero"), dtype)
    assert len(guarded) > 20


@pytest.mark.slow
def test_the_screen_decides_as_float64_does(seen: list[Any]) -> None:
    """Every pair that the masks call certain, or leave out, against its distance."""
    for case in range(2):
        p = cast(problem(90, 4 ** (case + 1), classes=45, seed=case), torch.float32)
        if case % 2:  # rows of unlike norms, and a common offset
            p["embeddings"] = p["embeddings"] * torch.logspace(-1, 1, 90)[:, None] + 3
        d2 = torch.cdist(
            p["embeddings"].double(), p["embeddings"].double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        d2 = d2.square()
        order = p["labels"].argsort(stable=True)
        for share in (0.05, 0.4, 0.9):
            p["margin"] = float(d2.quantile(share))
            seen.clear()
            mmfast.contrastive_loss(**p)
            (masks,) = seen
            tiles = (masks.dense.repeat_interleave(64, dim=0).repeat_interleave(64, dim=1)[:90, :90] > 0).triu(1)
            certain = (masks.verdicts[:90, :90] == 1) & tiles
            undecided = (masks.verdicts[:90, :90] > 1) & tiles
            mirrored = masks.verdicts_turned[:90, :90].T
            assert torch.equal(mirrored[tiles], masks.verdicts[:90, :90][tiles])
            assert torch.equal(masks.counts[:90], certain.sum(dim=1).int())
            assert torch.equal(masks.counts_turned[:90], certain.sum(dim=0).int())
            doubtful = bits(masks.doubtful)[:90, :90]
            assert torch.equal(bits(masks.doubtful_turned)[:90, :90], doubtful.T)
            labels, sorted_d2 = p["labels"][order], d2[order][:, order]
            pair = (labels[:, None] != labels[None, :]).triu(1)
            active = pair & (sorted_d2 < p["margin"])
            assert bool((certain <= active).all())
            assert not bool((doubtful & (certain | undecided)).any())
            assert bool((active <= (certain | undecided | doubtful)).all())
            doubtful |= undecided
            assert int(doubtful.sum()) < int(pair.sum()) // 3


def bits(words: torch.Tensor) -> torch.Tensor:
    return (words[:, :, None] >> torch.arange(32) & 1).flatten(1).bool()


@pytest.mark.slow
@pytest.mark.parametrize("below", [True, False])
def test_residuals_that_meet_the_bounds_prove_nothing(below: bool, seen: list[Any]) -> None:
    """Distances are longer, or shorter, than those of the digits by all that the residuals allow.

    Features of ±1 digit and a half, and one that sets the scale; pairs lie just on the other side of the margin.
    """
    features, scale = 64, 1 / 127
    signs = torch.randint(0, 2, (64, features), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    x = signs * 1.499 * scale
    x[:, 0] = torch.where(torch.arange(64) < 32, 1.0, -1.0)
    p = {"embeddings": x, "labels": torch.arange(64), "ref_emb": None, "ref_labels": None}
    d2 = torch.pdist(x.double()).square().unique()
    for distance in d2[:: len(d2) // 2]:
        assert_exact({**p, "margin": float(distance) * (1 + 1e-9 if below else 1 - 1e-9)})
    assert seen


def test_rows_with_values_exchanged_are_not_equal() -> None:
    """Nor are those whose bits differ by the numbers of their features."""
    a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    bits_of_a = a.view(torch.int64)
    for mask in (0, 1, 2, 3):
        b = torch.stack([bits_of_a[1] ^ mask, bits_of_a[0] ^ mask]).view(torch.float64)
        loss = mmfast.contrastive_loss(torch.stack([a, b, a]), torch.zeros(3).long(), reduction="mean_nonzero")
        assert float(loss) == pytest.approx(2)


def test_equal_rows_are_counted_by_value() -> None:
    """-0 equals 0, rows that differ in their last feature do not; both forms."""
    x = torch.zeros(40, 9, dtype=torch.float64)
    x[::3] = -0.0
    x[::5, 8] = 1e-300
    x[20:] = x[:20] + 1
    for ref in (None, x[:25]):
        p: Problem = {
            "embeddings": x,
            "labels": torch.arange(40) % 2,
            "ref_emb": ref,
            "reduction": "mean_nonzero",
            "margin": 0.5,
        }
        p["ref_labels"] = None if ref is None else torch.arange(25) % 2
        loss, _ = loss_and_gradients(mmfast.contrastive_loss, p)
        y, y_labels = (x, p["labels"]) if ref is None else (ref, p["ref_labels"])
        nonzero = sum(
            bool((a != b).any())
            for (a, i), (b, j) in itertools.product(zip(x, p["labels"], strict=True), zip(y, y_labels, strict=True))
            if i == j
        )
        d2 = torch.cdist(x, y).square()
        same = p["labels"][:, None] == y_labels[None, :]
        negatives = (0.5 - d2[~same]).relu()
        expected = d2[same].sum() / nonzero + negatives.sum() / (negatives > 0).sum().clamp(min=1)
        torch.testing.assert_close(loss, expected)


class TestDenseTiles:
    """Data that only the integers of a tile with many active pairs could spoil."""

    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 14 + [3] * 40)

    def problem(self, x: torch.Tensor, margin: float) -> Problem:
        return {"embeddings": x, "labels": self.labels, "ref_emb": None, "ref_labels": None, "margin": margin}

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("ref_rows", [None, 40])
    def test_an_ignored_row_may_hold_anything(self, value: float, ref_rows: int | None, seen: list[Any]) -> None:
        p = problem(60, 3, classes=60, ref_rows=ref_rows, margin=3.0, ignore_index=-100)
        clean = {**p, "embeddings": p["embeddings"][:-1], "labels": p["labels"][:-1]}
        p["embeddings"][-1], p["labels"][-1] = value, -100
        loss, gradients = loss_and_gradients(mmfast.contrastive_loss, cast(p, torch.float32))
        expected, expected_gradients = loss_and_gradients(mmfast.contrastive_loss, cast(clean, torch.float32))
        assert any(bool(masks.dense.any()) for masks in seen)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients[0][:-1], expected_gradients[0])
        assert not gradients[0][-1].any()

    def test_pairs_just_within_the_margin(self, seen: list[Any]) -> None:
        """Their loss is the difference of two numbers 4,096 times as large."""
        for b in (0.05, 0.07, 0.31):
            near = float(torch.tensor(b))
            x = torch.tensor([-1.0] * 40 + [0.0] * 20 + [near] * 14 + [1.0] * 40, dtype=torch.float64)[:, None]
            assert_exact(self.problem(x, near**2 * (1 + 2**-12)))
        assert all(bool(masks.dense.any()) for masks in seen)

    @pytest.mark.parametrize(("dtype", "ref_rows"), [(torch.float32, 70), (torch.bfloat16, None)])
    def test_rows_too_large_to_be_summed(self, dtype: torch.dtype, ref_rows: int | None, seen: list[Any]) -> None:
        """Their pairs are active like all others, but are looked at one by one."""
        p = problem(70, 6, classes=9, ref_rows=ref_rows, margin=1e11)
        for side in (p["embeddings"], p["ref_emb"])[: 1 if ref_rows is None else 2]:
            side[::23] *= 1e5
        assert_exact(p, dtype)
        for masks in seen:
            tiles = masks.dense.repeat_interleave(64, dim=0).repeat_interleave(64, dim=1) == 1
            assert bool((masks.verdicts[tiles] == 3).any())

    @pytest.mark.parametrize(
        ("dtype", "margin", "digits"),
        [
            (torch.float32, 1.5, 4),
            (torch.float16, 1.5, 3),
            (torch.bfloat16, 1.5, 2),
            (torch.bfloat16, 1e-3, 3),
        ],
    )
    def test_as_many_digits_as_are_needed(
        self, dtype: torch.dtype, margin: float, digits: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        common_frame, frames = host.common_frame, []

        def remember(*arguments: Any) -> Any:
            frames.append(common_frame(*arguments))
            return frames[-1]

        monkeypatch.setattr(host, "common_frame", remember)
        p = problem(64, 8, classes=4)
        p["embeddings"][1::2] = p["embeddings"][::2] + 0.01 * p["embeddings"][1::2]  # near ones, of other classes
        assert_exact({**p, "margin": margin}, dtype)
        assert float(frames[0].constants[3]) == digits

    def test_rows_half_a_step_apart(self) -> None:
        margin = 0.005
        step = 2**-22 * (margin / 2) ** 0.5
        x = torch.zeros(114, 2, dtype=torch.float64)
        x[:40, 1], x[74:, 1] = -1, 1
        x[40:60, 0], x[60:74, 0], x[60:74, 1] = 12345.49 * step, 12345.51 * step, 0.03
        assert_exact(self.problem(x, margin))


def test_sums_of_float64_at_the_ends_of_its_range() -> None:
    cases = [([0, 1e-280, -1e-280, 2e-280, -2e-280, 1e60], 1e130), ([0, 1e-60, 1e280, -1e280, 2e280, -2e280], 1e-100)]
    for values, margin in cases:
        x = torch.tensor(values, dtype=torch.float64)[:, None]
        p = {"embeddings": x, "labels": torch.arange(6), "ref_emb": None, "ref_labels": None, "margin": margin}
        assert_exact(p, torch.float64)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_shape_labels_scale_and_margin(data: st.DataObject) -> None:
    draw = data.draw
    p = problem(
        draw(st.integers(0, 70)),
        draw(st.integers(0, 70)),
        draw(st.sampled_from([1, 2, 9, 100])),
        draw(st.one_of(st.none(), st.integers(0, 70))),
        draw(st.integers(0, 2**16)),
        margin=draw(st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 4))),
        reduction=draw(st.sampled_from(REDUCTIONS)),
        ignore_index=draw(st.sampled_from([-100, 0])),
    )
    if draw(st.booleans()):
        p["embeddings"] = (p["embeddings"] * 2).round() / 2
    p["embeddings"] = p["embeddings"] + draw(st.sampled_from([0.0, 0.0, 5.0, 1000.0]))
    assert_exact(p, draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))


@pytest.mark.parametrize("cross", [False, True])
def test_compile_without_a_graph_break(cross: bool) -> None:
    p = cast(problem(40, 16, ref_rows=30, margin=1.8), torch.bfloat16)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ref = (torch.tanh(y), p["ref_labels"]) if cross else (None, None)
        return mmfast.contrastive_loss(torch.tanh(x), p["labels"], *ref, margin=1.8) / 7

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x, y = (p[name].clone().requires_grad_() for name in ("embeddings", "ref_emb"))
        loss = function(x, y)
        loss.backward()
        results.append((loss, x.grad, y.grad if cross else None))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.slow
def test_only_the_gradients_asked_for() -> None:
    p: Problem = problem(50, 20, ref_rows=60, margin=1.8)
    _, expected = loss_and_gradients(reference.contrastive_loss, p)
    for wanted in ((True, False), (False, True), (False, False)):
        leaves = [p[n].clone().requires_grad_(w) for n, w in zip(("embeddings", "ref_emb"), wanted, strict=True)]
        for dtype in (torch.float64, torch.float32):
            x, y = (leaf.detach().to(dtype).requires_grad_(leaf.requires_grad) for leaf in leaves)
            loss = mmfast.contrastive_loss(x, p["labels"], y, p["ref_labels"], margin=1.8)
            assert loss.requires_grad == any(wanted)
            if loss.requires_grad:
                loss.backward()
            for leaf, gradient in zip((x, y), expected, strict=True):
                assert (leaf.grad is not None) == leaf.requires_grad
                if leaf.grad is not None:
                    torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-5, atol=1e-5)
