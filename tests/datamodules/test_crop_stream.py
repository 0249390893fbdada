from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aeic_lightning.errors import UserError
from datamodules.base import ImageFiles
from datamodules.crops import CropDataset, CropLoader, CropSampler, WholeImages, centre_crop, to_tensor


@pytest.fixture
def photos(tmp_path):
    """Five images of distinct noise, so that a crop tells where it came from."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (150 + i, 170, 3), dtype=np.uint8)).save(paths[-1])
    return ImageFiles(paths, [path.stem for path in paths])


def batches(images, *, epochs=1, num_workers=0, seed=0, batch_size=4, samples=12, **options):
    dataset = CropDataset(images, 128, seed, **options)
    sampler = CropSampler(len(dataset), samples, batch_size, seed)
    loader = CropLoader(
        dataset, sampler, batch_size=batch_size, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    return [[(batch["name"], batch["image"]) for batch in loader] for _ in range(epochs)]


def same(a, b):
    return len(a) == len(b) and all(
        names == others and torch.equal(x, y) for (names, x), (others, y) in zip(a, b, strict=True)
    )


sizes = st.integers(1, 40)


@given(num_images=sizes, samples=sizes, batch=st.integers(1, 5), start=st.integers(0, 100), seed=st.integers(0, 2**40))
def test_images_appear_equally_often(num_images, samples, batch, start, seed):
    sampler = CropSampler(num_images, max(samples, batch), batch, seed)
    sampler.start = start
    count = np.bincount([index for index, _ in sampler], minlength=num_images)
    # A stretch holds whole cycles and a part of one at either end.
    assert count.max() - count.min() <= 2
    sampler.start = 0
    count = np.bincount([index for index, _ in sampler], minlength=num_images)
    assert count.max() - count.min() <= 1


@given(num_images=sizes, steps=st.integers(1, 6), batch=st.integers(1, 4), world=st.integers(1, 4))
def test_ranks_share_the_stream_of_one_process(num_images, steps, batch, world):
    samples = steps * batch * world
    whole = list(CropSampler(num_images, samples, batch * world))
    parts = [list(CropSampler(num_images, samples, batch, rank=r, world_size=world)) for r in range(world)]
    assert [len(part) for part in parts] == [steps * batch] * world
    for step in range(steps):
        together = [pair for part in parts for pair in part[step * batch : (step + 1) * batch]]
        assert sorted(together) == sorted(whole[step * batch * world : (step + 1) * batch * world])


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_weighted_cycle_holds_each_image_its_share_rounded_down_or_up(weights, seed):
    n = len(weights)
    count = np.bincount([i for i, _ in CropSampler(n, n, 1, seed, np.array(weights))], minlength=n)
    share = n * np.array(weights) / sum(weights)
    assert (np.abs(count - share) < 1 + 1e-6).all()


def test_weighted_shares_are_met_over_many_cycles():
    weights = np.array([1.0, 2.0, 5.0])
    count = np.bincount([i for i, _ in CropSampler(3, 9000, 1, 3, weights)])
    np.testing.assert_allclose(count / 9000, weights / 8, atol=0.01)


def test_stream_goes_on_over_epochs_and_the_rest_of_an_epoch_is_not_lost():
    class Keys:
        def __getitem__(self, key):
            return key

    loader = CropLoader(Keys(), CropSampler(5, 7, 2), batch_size=2, collate_fn=list)
    samples = [sample for _ in range(5) for batch in loader for _, sample in batch]
    assert samples == list(range(30))


def test_epoch_shorter_than_a_batch():
    with pytest.raises(UserError, match="samples_per_epoch to 16"):
        CropSampler(8, 8, 8, world_size=2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(photos, num_workers):
    expected = batches(photos, epochs=3)
    found = batches(photos, epochs=3, num_workers=num_workers)
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_seed_repeats_and_epochs_and_seeds_differ(photos):
    first, second = batches(photos, epochs=2)
    assert same(first, batches(photos)[0])
    assert not same(first, second)
    assert not same(first, batches(photos, seed=1)[0])
    # Different crops, not merely another order: no crop appears twice.
    crops = [crop.numpy().tobytes() for epoch in (first, second) for _, images in epoch for crop in images]
    assert len(set(crops)) == 24


def test_global_random_state_has_no_influence(photos):
    torch.manual_seed(1)
    np.random.seed(1)
    first = batches(photos)[0]
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(first, batches(photos)[0])


TAKEN = [0, 1, 2, 3, 4, 7]
WITH_WORKERS = [(2, taken) if taken in (1, 4) else pytest.param(2, taken, marks=pytest.mark.slow) for taken in TAKEN]


@pytest.mark.parametrize(("num_workers", "taken"), [*((0, taken) for taken in TAKEN), *WITH_WORKERS])
def test_next_sample_goes_on_where_the_loader_stood(photos, taken, num_workers):
    def loader(first_sample=0):
        dataset = CropDataset(photos, 128)
        sampler = CropSampler(5, 12, 4)
        return CropLoader(dataset, sampler, first_sample, batch_size=4, num_workers=num_workers)

    def take(loader, count):
        found = []
        while len(found) < count:
            for batch in loader:
                found.append((batch["name"], batch["image"]))
                if len(found) == count:
                    break
        return found

    expected = take(loader(), 9)
    first = loader()
    assert same(take(first, taken), expected[:taken])
    assert first.next_sample == taken * 4  # prefetched batches do not count
    assert same(take(loader(first.next_sample), 9 - taken), expected[taken:])


def test_crops_are_parts_of_the_image_and_flips_are_mirror_images(photos):
    image = photos.read(0)
    plain, across, down = (
        CropDataset(photos, 128, horizontal_flip=h, vertical_flip=v)
        for h, v in [(False, False), (True, False), (False, True)]
    )
    seen = Counter()
    for sample in range(60):
        crop = plain[0, sample]["image"]
        pixels = ((crop + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        tops, lefts = np.nonzero((image == pixels[0, 0]).all(-1))
        assert any(np.array_equal(image[t : t + 128, x : x + 128], pixels) for t, x in zip(tops, lefts, strict=True))
        for dataset, axis in ((across, 2), (down, 1)):
            other = dataset[0, sample]["image"]
            mirrored = torch.equal(other, crop.flip(axis))
            assert mirrored or torch.equal(other, crop)
            seen[axis, mirrored] += 1
    assert min(seen.values()) > 15
    assert len(seen) == 4


def test_every_position_is_reached(tmp_path):
    Image.fromarray(np.arange(130 * 129 * 3, dtype=np.uint32).reshape(130, 129, 3).astype(np.uint8)).save(
        tmp_path / "a.png"
    )
    dataset = CropDataset(ImageFiles([tmp_path / "a.png"], ["a"]), 128, horizontal_flip=False)
    assert len({dataset[0, k]["image"].numpy().tobytes() for k in range(100)}) == 3 * 2


@pytest.mark.parametrize("shape", [(128, 128), (50, 300), (300, 50), (1, 1), (127, 128), (97, 131)])
def test_small_images_are_enlarged_just_enough(tmp_path, shape):
    Image.fromarray(np.full((*shape, 3), 77, np.uint8)).save(tmp_path / "a.png")
    dataset = CropDataset(ImageFiles([tmp_path / "a.png"], ["a"]), 128)
    image = dataset[0, 0]["image"]
    assert image.shape == (3, 128, 128)
    assert ((image + 1) * 127.5).round().unique().tolist() == [77]


def test_tensor_gives_the_bytes_back():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    tensor = to_tensor(values)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    np.testing.assert_array_equal(((tensor + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), values)


def test_centre_crop():
    image = np.arange(7 * 10).reshape(7, 10, 1)
    np.testing.assert_array_equal(centre_crop(image, 3, 4), image[2:5, 3:7])
    np.testing.assert_array_equal(centre_crop(image, 100, 4), image[:, 3:7])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_image_stops_with_one_line(photos, num_workers):
    photos.paths[2].write_bytes(b"")
    with pytest.raises(UserError, match=r"2\.png") as caught:
        batches(photos, num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:skipped a training image")
def test_skipping_replaces_and_counts(photos, num_workers):
    photos.paths[1].write_bytes(b"text")
    photos.paths[2].write_bytes(b"")
    dataset = CropDataset(photos, 128, on_error="skip")
    loader = CropLoader(dataset, CropSampler(5, 20, 4), batch_size=4, num_workers=num_workers)
    names = [name for batch in loader for name in batch["name"]]
    assert Counter(names) == {"0": 4, "3": 12, "4": 4}  # 1 and 2 are replaced by the next that can be read
    assert dataset.skipped == ["1", "2"]


def test_skipping_warns_with_the_file(photos):
    photos.paths[1].write_bytes(b"")
    dataset = CropDataset(photos, 128, on_error="skip")
    with pytest.warns(UserWarning, match=r"1\.png.*empty"):
        assert dataset[1, 0]["name"] == "2"


@pytest.mark.filterwarnings("ignore:skipped a training image")
def test_nothing_readable(photos):
    for path in photos.paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 5"):
        CropDataset(photos, 128, on_error="skip")[0, 0]


def test_evaluation_never_skips(photos):
    photos.paths[1].write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png"):
        WholeImages(photos)[1]


def test_cache_keeps_the_decoded_image(photos):
    dataset = CropDataset(photos, 128, cache=True)
    before = dataset[0, 0]["image"]
    photos.paths[0].write_bytes(b"")
    assert torch.equal(dataset[0, 0]["image"], before)


def test_a_resumed_run_with_other_settings_is_told():
    def loader(seed, batch):
        return CropLoader(CropDataset(ImageFiles([], []), 128, seed), CropSampler(4, 8, batch, seed), batch_size=batch)

    with pytest.warns(UserWarning, match="seed was 0, is 1; global_batch_size was 2, is 4"):
        loader(1, 4).load_state_dict(loader(0, 2).state_dict())


def test_zoom_and_channel_shuffling_leave_position_and_flips_alone():
    """A crop with shuffled channels is a permutation of the plain crop, for every sample."""
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    source = SimpleNamespace(names=["a"], read=lambda index: image, size=lambda index: image.shape[:2])
    plain, shuffled = CropDataset(source, 128), CropDataset(source, 128, shuffle_channels=True)
    orders = set()
    for sample in range(30):
        a, b = plain[0, sample]["image"], shuffled[0, sample]["image"]
        order = tuple(next(i for i in range(3) if torch.equal(a[i], channel)) for channel in b)
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert len(orders) == 6


def test_zoom_shows_a_larger_window_at_the_same_size():
    """On a linear ramp the slope of a crop is its zoom: between 1 and the limit, and spread over it."""
    ramp = np.tile(np.linspace(0, 255, 1024).astype(np.uint8)[None, :, None], (1024, 1, 3))
    source = SimpleNamespace(names=["a"], read=lambda index: ramp, size=lambda index: ramp.shape[:2])
    dataset = CropDataset(source, 128, horizontal_flip=False, max_zoom_out=3.0)
    zooms = []
    for sample in range(60):
        row = dataset[0, sample]["image"][0, 64]
        zooms.append(((row[-8:].mean() - row[:8].mean()) / 120 / (2 / 1024)).item())
    assert 0.9 < min(zooms) < 1.3
    assert 2.5 < max(zooms) < 3.2
