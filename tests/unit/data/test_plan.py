"""The plan deals every sample once, whatever happens to the workers."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import plan
from pipeline.data.manifest import Shard


def shards(*counts: int) -> list[Shard]:
    return [Shard(name=f"train-{i:06d}.tar", samples=n, bytes=1, sha256="0" * 64) for i, n in enumerate(counts)]


def segments(counts: list[int], epochs: int, **settings: int) -> list[plan.Segment]:
    settings = {"seed": 0, "patches_per_tile": 2, "shards_per_window": 2} | settings
    stream = plan.stream(shards(*counts), **settings)
    return list(itertools.takewhile(lambda segment: segment.epoch < epochs, stream))


def samples(stream: list[plan.Segment]) -> Counter[tuple[int, tuple[str, ...], int]]:
    return Counter((s.epoch, s.shards, position) for s in stream for position in range(s.start, s.stop))


counts = st.lists(st.integers(1, 9), min_size=1, max_size=6)
stages = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), max_size=4)


@given(counts, st.integers(1, 3))
def test_every_epoch_holds_every_shard_once(counts: list[int], window: int):
    for epoch in range(3):
        names = [n for s in segments(counts, 3, shards_per_window=window) if s.epoch == epoch for n in s.shards]
        assert sorted(names) == [shard.name for shard in shards(*counts)]


sets = st.lists(st.tuples(counts, st.fractions(Fraction(1, 5), 4, max_denominator=5)), min_size=1, max_size=3)


def mixed(of: list[tuple[list[int], Fraction]], epochs: int, seed: int = 0) -> list[plan.Segment]:
    several = [(shards(*counts), weight) for counts, weight in of]
    stream = plan.mixed_stream(several, seed=seed, patches_per_tile=2, shards_per_window=2)
    return list(itertools.takewhile(lambda segment: segment.epoch < epochs, stream))


@given(sets)
def test_a_mixture_shows_every_shard_as_often_as_its_weight_says(of: list[tuple[list[int], Fraction]]):
    """In as many epochs as the weight's denominator exactly, in any number of epochs within one."""
    for epochs in range(1, 6):
        labels = [plan.Label.parse(text, s.epoch) for s in mixed(of, epochs) for text in s.shards]
        assert len(set(labels)) == len(labels)
        seen = Counter((label.set, label.name) for label in labels)
        for number, (counts, weight) in enumerate(of):
            for shard in shards(*counts):
                times = seen[number, shard.name]
                assert abs(times - weight * epochs) < 1
                assert times == weight * epochs or (weight * epochs).denominator > 1


@given(sets, st.integers(0, 5))
def test_a_set_is_read_in_the_same_order_whatever_is_beside_it(of: list[tuple[list[int], Fraction]], seed: int):
    def first(of: list[tuple[list[int], Fraction]]) -> list[set[str]]:
        return [{t for s in mixed(of, 4, seed) if s.epoch == e for t in s.shards if t[0] == "0"} for e in range(4)]

    assert first(of) == first(of[:1])


@given(sets, st.integers(0, 3))
def test_a_mixture_is_a_pure_function_and_shuffles_its_sets(of: list[tuple[list[int], Fraction]], seed: int):
    assert mixed(of, 3, seed) == mixed(of, 3, seed)
    even = [([1] * 40, Fraction(1)), ([1] * 40, Fraction(1))]
    numbers = [text[0] for s in mixed(even, 1, seed) for text in s.shards]
    assert "".join(numbers) not in {"0" * 40 + "1" * 40, "1" * 40 + "0" * 40}


@given(counts, stages, st.integers(1, 4))
def test_nothing_twice_and_nothing_left_out_after_any_history(
    counts: list[int], history: list[tuple[int, int]], workers: int
):
    everything = segments(counts, epochs=4)
    left: list[plan.Segment] = everything
    consumed: Counter = Counter()
    stages: tuple[plan.Stage, ...] = ()
    for count, amount in history:
        for rank in range(count):
            mine = list(plan.for_worker(iter(everything), stages, count, rank))
            flat = list(samples(mine).elements())
            consumed.update(flat[:amount])
        stages = plan.advance(stages, count, amount)
    left = [s for rank in range(workers) for s in plan.for_worker(iter(everything), stages, workers, rank)]
    assert consumed + samples(left) == samples(everything)
    assert max((consumed + samples(left)).values()) == 1


@given(counts, st.integers(1, 3), st.integers(0, 20))
def test_with_the_same_workers_each_goes_on_in_its_own_stream(counts: list[int], workers: int, consumed: int):
    everything = segments(counts, epochs=6)
    for rank in range(workers):
        undisturbed = list(samples(list(plan.for_worker(iter(everything), (), workers, rank))))
        stages = plan.advance((), workers, consumed)
        resumed = list(samples(list(plan.for_worker(iter(everything), stages, workers, rank))))
        assert resumed == undisturbed[consumed:]


def test_shard_order_changes_with_the_epoch_and_the_seed_only():
    first = [s.shards for s in segments([1] * 8, 2, shards_per_window=1)]
    assert first[:8] != first[8:]
    assert first == [s.shards for s in segments([1] * 8, 2, shards_per_window=1)]
    assert first != [s.shards for s in segments([1] * 8, 2, shards_per_window=1, seed=1)]


def test_a_segment_in_two_parts_mixes_as_in_one():
    whole = plan.Segment(0, ("a", "b"), 0, 10)
    order = plan.mixed_order(whole, 5, 2, seed=3)
    assert {tuple(row) for row in order.tolist()} == set(itertools.product(range(5), range(2)))
    parts = [plan.mixed_order(plan.Segment(0, ("a", "b"), *cut), 5, 2, seed=3) for cut in ((0, 4), (4, 10))]
    assert np.array_equal(order, np.concatenate(parts))


@given(counts, st.integers(1, 40), st.integers(1, 15))
def test_stretches_hold_a_streams_samples_in_order_and_no_more(counts: list[int], total: int, stretch: int):
    def flat(parts: list[list[plan.Segment]]) -> list[tuple[int, tuple[str, ...], int]]:
        return [(s.epoch, s.shards, position) for part in parts for s in part for position in range(s.start, s.stop)]

    everything = segments(counts, epochs=total + 1)  # an epoch has a sample at least
    parts = list(plan.in_stretches(iter(everything), total, stretch))
    assert flat(parts) == flat([everything])[:total]
    sizes = [sum(len(segment) for segment in part) for part in parts]
    assert sizes[:-1] == [stretch] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= stretch


def test_all_workers_have_the_same_scale_and_all_scales_come():
    drawn = [plan.scale_of((2, 3, 4), batch, seed=0) for batch in range(60)]
    assert set(drawn) == {2, 3, 4}
    assert plan.scale_of((2, 3, 4), 7, seed=0) == drawn[7]
