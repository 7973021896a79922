"""One file to one square: crops against their published definitions, scaled decoding, and every
kind of image file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from gnpcli.data.base import Images
from gnpcli.data.images import crops
from gnpcli.data.images.crops import Transform, centre_box, cut, random_box
from gnpcli.data.images.opening import opened
from gnpcli.data.images.pixels import Decoding, read_pixels
from gnpcli.errors import DataError
from tests.conftest import SHARED_DATA

SAMPLES = SHARED_DATA / "imagenet-samples-120.tar"


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image without sharp edges, which JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Unpack 40 of the real photographs, the largest among them."""
    if not SAMPLES.exists():
        pytest.skip(f"{SAMPLES} is absent: real photographs are not part of the project")
    root = tmp_path_factory.mktemp("photographs")
    with tarfile.open(SAMPLES) as archive:
        files = sorted(
            (member for member in archive if member.isfile()), key=lambda member: -member.size
        )
        archive.extractall(root, [*files[:10], *files[10::4]], filter="data")
    return sorted(root.rglob("*.JPEG"))


# --- boxes


def published_evaluation(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to size / 0.875, cut the centre out: two steps, as in the papers."""
    short = round(size / 0.875)
    width, height = image.size
    if width < height:
        image = image.resize((short, int(short * height / width)), Image.Resampling.BILINEAR)
    else:
        image = image.resize((int(short * width / height), short), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 97])
@pytest.mark.parametrize("shape", [(60, 60), (61, 97), (300, 101), (19, 40), (500, 7), (1, 1)])
def test_evaluation_in_one_step_is_the_published_one_in_two(
    shape: tuple[int, int], size: int, tmp_path: Path
) -> None:
    image = Image.fromarray(draw().integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    got = Transform(size)(str(tmp_path / "x.png"), draw())
    assert got.shape == (size, size, 3)
    assert got.dtype == np.uint8
    # The same filter at the same places, with coefficients rounded in another way.
    difference = np.abs(got.astype(int) - np.asarray(published_evaluation(image, size)))
    assert difference.max() <= 2
    assert difference.mean() < 0.4


def test_evaluation_of_real_photographs_is_the_published_one(samples: list[Path]) -> None:
    means, largest = [], []
    for path in samples:
        with Image.open(path) as image:
            want = np.asarray(published_evaluation(image.convert("RGB"), 224), dtype=int)
        difference = np.abs(Transform(224)(str(path), draw()) - want)
        means.append(difference.mean())
        largest.append(difference.max())
    # All but the largest are decoded in full and differ by rounding alone.
    assert np.median(largest) <= 1
    assert np.median(means) < 0.25
    assert max(means) < 1


def test_random_boxes_have_the_shares_and_aspects_of_the_published_crop() -> None:
    rng = draw()
    width, height, count = 400, 300, 4000
    boxes = np.array([random_box(rng, width, height, 0.08) for _ in range(count)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    share, aspect = w * h / (width * height), w / h
    assert share.min() > 0.078  # whole pixels
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    # Boxes that do not fit are drawn again, so that large ones are rarer than uniform; small ones
    # all fit.
    small = share < 0.5
    assert np.histogram(share[small], bins=6, range=(0.08, 0.5))[0] == pytest.approx(
        small.sum() / 6, rel=0.2
    )
    assert np.log(aspect[small]).mean() == pytest.approx(0, abs=0.02)
    # Places are uniform: of 4x4 pixels, 3x3 lie at four.
    places = [
        box[:2]
        for box in (random_box(rng, 4, 4, 0.3) for _ in range(6000))
        if box[2] - box[0] == box[3] - box[1] == 3
    ]
    counts = [places.count((left, top)) for left in (0, 1) for top in (0, 1)]
    assert len(places) == sum(counts) > 1000
    assert counts == pytest.approx([len(places) / 4] * 4, rel=0.2)
    assert random_box(draw(3), 50, 50, 1.0) == (0, 0, 50, 50)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1000, 90), (440, 0, 560, 90)),
        ((90, 1000), (0, 440, 90, 560)),
        ((1, 9), (0, 4, 1, 5)),
        ((9, 1), (4, 0, 5, 1)),
    ],
)
def test_images_that_no_box_fits_give_their_centre(
    shape: tuple[int, int], box: tuple[int, ...]
) -> None:
    # Nearly the whole area at an aspect of at most 4/3 never fits; at most 4/3 of the short side is
    # left.
    assert random_box(draw(), *shape, 0.9) == box


# --- scaled decoding


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the scale of every image that is decoded."""
    noted: list[int] = []

    def read(image: ImageFile.ImageFile, scale: int, decoding: Decoding) -> tuple[Images, int]:
        pixels, used = read_pixels(image, scale, decoding)
        assert pixels.shape[:2] == (-(-image.height // used), -(-image.width // used))
        noted.append(used)
        return pixels, used

    monkeypatch.setattr(crops, "read_pixels", read)
    return noted


@pytest.mark.parametrize("detail", [1, 2])
def test_decoding_is_scaled_as_far_as_the_box_keeps_enough_pixels(
    detail: int, scales: list[int], tmp_path: Path
) -> None:
    rng = draw()
    for number in range(40):
        width, height = (int(side) for side in rng.integers(40, 700, 2))
        smooth(width, height, number).save(tmp_path / "x.jpg", quality=95)
        box = random_box(rng, width, height, 0.3)
        size = int(rng.integers(8, 60))
        side = min(box[2] - box[0], box[3] - box[1])
        with opened(str(tmp_path / "x.jpg")) as image:
            cut(image, box, size, detail=detail)
        assert scales[-1] == max(s for s in (1, 2, 4, 8) if s == 1 or side >= s * detail * size)
    assert set(scales) == {1, 2, 4, 8}


@pytest.mark.parametrize(("detail", "typical", "worst"), [(1, 2.0, 6.0), (2, 0.7, 2.0)])
def test_scaled_decoding_of_real_photographs_stays_near_the_full_one(
    samples: list[Path], scales: list[int], detail: int, typical: float, worst: float
) -> None:
    """Mean absolute difference over an image, in levels of 256; at 64 pixels nearly every crop is
    scaled.
    """
    differences = []
    for seed, path in enumerate(samples):
        with Image.open(path) as image:
            full = image.convert("RGB")
        box = random_box(draw(seed), *full.size, 0.3)
        want = np.asarray(full.resize((64, 64), Image.Resampling.BILINEAR, box=box), dtype=int)
        with opened(str(path)) as image:
            got = cut(image, box, 64, detail=detail)
        if scales[-1] > 1:
            differences.append(np.abs(got - want).mean())
    assert len(differences) > 15
    assert np.mean(differences) < typical
    assert max(differences) < worst


def test_training_takes_box_flip_and_policy_from_its_numbers_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "x.png")
    Image.fromarray(draw().integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    plain, flipping = Transform(16, min_area=0.5), Transform(16, min_area=0.5, flip=True)
    flips = 0
    for seed in range(60):
        one, other = plain(path, draw(seed)), flipping(path, draw(seed))
        np.testing.assert_array_equal(one, plain(path, draw(seed)))
        if (one == other).all():
            continue
        np.testing.assert_array_equal(one[:, ::-1], other)
        flips += 1
    assert 18 <= flips <= 42  # 30 +- 4: three deviations
    seen = {plain(path, draw(seed)).tobytes() for seed in range(20)}
    assert len(seen) == 20

    def policy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        assert image.size == (16, 16)
        assert image.mode == "RGB"
        return Image.eval(image, lambda level: 255 - level)

    for seed in range(5):
        np.testing.assert_array_equal(
            Transform(16, min_area=0.5, flip=True, policy=policy)(path, draw(seed)),
            255 - flipping(path, draw(seed)),
        )


# --- files


def as_mode(mode: str) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.convert(mode)


FILES: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, object]]] = {
    "a PNG named .JPEG": ("PNG", as_mode("RGB"), {}),
    "CMYK, inverted as Adobe does": ("JPEG", as_mode("CMYK"), {"quality": 98}),
    "grey": ("JPEG", as_mode("L"), {"quality": 98}),
    "progressive": ("JPEG", as_mode("RGB"), {"quality": 98, "progressive": True}),
    "grey PNG": ("PNG", as_mode("L"), {}),
    "RGBA": ("PNG", as_mode("RGBA"), {}),
    "grey with transparency": ("PNG", as_mode("LA"), {}),
    "palette": ("PNG", lambda image: image.quantize(200), {}),
    "palette with transparency": (
        "PNG",
        lambda image: image.quantize(200),
        {"transparency": bytes(range(200))},
    ),
    "16 bits": (
        "PNG",
        lambda image: Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) << 8) + 77),
        {},
    ),
    "black and white": ("PNG", as_mode("1"), {}),
    "WebP": ("WEBP", as_mode("RGB"), {"lossless": True}),
    "GIF": ("GIF", lambda image: image.quantize(200), {}),
    "BMP": ("BMP", as_mode("RGB"), {}),
    "several photographs in one": ("MPO", as_mode("RGB"), {"quality": 98}),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("image_size", [40, 150])
def test_every_kind_of_file_becomes_rgb(what: str, image_size: int, tmp_path: Path) -> None:
    # B27: one PNG named .JPEG is what ends a run on ImageNet elsewhere.
    form, make, options = FILES[what]
    own = make(smooth(320, 200))
    if form == "MPO":
        options = {**options, "save_all": True, "append_images": [smooth(320, 200, 9)]}
    path = tmp_path / "x.JPEG"
    own.save(path, format=form, **options)
    shown = (
        np.asarray(own) >> 8
        if own.mode.startswith("I;16")
        else np.asarray(own.convert("RGBA").convert("RGB"))
    )
    if shown.ndim == 2:
        shown = np.repeat(shown[..., None], 3, axis=2)
    want = np.asarray(
        published_evaluation(Image.fromarray(shown.astype(np.uint8)), image_size), dtype=int
    )
    got = Transform(image_size)(str(path), draw())
    assert got.shape == (image_size, image_size, 3)
    difference = np.abs(got - want)
    is_lossy = form in ("JPEG", "MPO")
    assert difference.mean() < (1.5 if is_lossy else 0.5)
    assert difference.max() <= (16 if is_lossy else 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.JPEG is not a JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM image: delete or replace it"),
        (b"no image", r"x\.JPEG is not a JPEG"),
        (None, r"x\.JPEG cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_image_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "x.JPEG").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Transform(8)(str(tmp_path / "x.JPEG"), draw())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_ends_early_is_named(form: str, tmp_path: Path) -> None:
    smooth(300, 200).save(tmp_path / "x.JPEG", format=form)
    whole = (tmp_path / "x.JPEG").read_bytes()
    (tmp_path / "x.JPEG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"x\.JPEG is (damaged \(.*\)|not a JPEG.*): delete or replace it"
    ) as caught:
        Transform(8, min_area=0.08)(str(tmp_path / "x.JPEG"), draw())
    assert "\n" not in str(caught.value)


def test_a_policys_own_failure_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    def broken(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        raise ZeroDivisionError

    smooth(30, 20).save(tmp_path / "x.png")
    with pytest.raises(ZeroDivisionError):
        Transform(8, policy=broken)(str(tmp_path / "x.png"), draw())


def test_centre_boxes_lie_within_the_image() -> None:
    rng = draw()
    for _ in range(3000):
        width, height, size = (int(side) for side in np.exp(rng.uniform(0, 8, 3)))
        left, top, right, bottom = centre_box(width, height, size)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
