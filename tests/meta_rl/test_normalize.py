"""Running moments against NumPy over all rows at once."""

from __future__ import annotations

import numpy as np

from meta_rl.normalize import Normalizer, RunningMoments


def test_moments_merged_batch_by_batch_equal_those_of_all_rows():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 5.0, (n, 4)) for n in (1, 7, 100)]
    moments = RunningMoments(4)
    for batch in batches:
        moments.update(batch)
    rows = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, rows.mean(0))
    np.testing.assert_allclose(moments.var, rows.var(0))


def test_a_normalizer_restored_from_its_tensors_maps_bit_for_bit_alike():
    rng = np.random.default_rng(0)
    first, second = Normalizer(3, 0.9), Normalizer(3, 0.9)
    first.update(rng.normal(2.0, 3.0, (4, 10, 3)), rng.normal(size=(4, 10)), np.zeros((4, 10), dtype=bool))
    second.restore(first.tensors())
    obs, reward = rng.normal(size=(5, 3)), rng.normal(size=5)
    assert (first.observe(obs) == second.observe(obs)).all()
    assert (first.read_reward(reward) == second.read_reward(reward)).all()
    assert first.return_scale == second.return_scale


def test_normalized_numbers_are_standard_and_clipped_and_a_constant_coordinate_maps_to_zero():
    rng = np.random.default_rng(0)
    normalizer = Normalizer(2, 0.9)
    obs = np.stack([rng.normal(5.0, 2.0, (8, 50)), np.full((8, 50), 3.0)], -1)
    normalizer.update(obs, rng.normal(size=(8, 50)), np.zeros((8, 50), dtype=bool))
    seen = normalizer.observe(obs)
    assert abs(seen[..., 0].mean()) < 1e-3
    assert abs(seen[..., 0].std() - 1.0) < 1e-3
    assert (seen[..., 1] == 0).all()
    assert normalizer.observe(np.array([[1e9, 0.0]]))[0, 0] == 10.0
