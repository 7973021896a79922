"""``cifar100``: CIFAR-100, 50,000 training and 10,000 test photographs in 100 classes.

They are 32x32, RGB (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).
The labels are the 100 fine ones, not the 20 superclasses. The classes are sorted by name. Images
are normalised by the published channel statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gnpcli.data.archives.facts import Example
from gnpcli.data.archives.fetch import Archive
from gnpcli.data.archives.published import PublishedDataset
from gnpcli.data.sources.cifar10 import read_binary

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_SUPERCLASSES = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things
large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
CLASS_NAMES = tuple(_CLASSES.split())
SUPERCLASSES = tuple(_SUPERCLASSES.split())
"""The coarse labels. TFDS keeps them, and nothing here uses them."""
ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    168_513_733,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)


def _examples(split: str, paths: Mapping[str, str]) -> Iterator[Example]:
    labels = ["coarse_label", "label"]
    return read_binary(paths[ARCHIVE.filename], [f"{split}.bin"], labels, split, len(CLASS_NAMES))


PUBLISHED = PublishedDataset(
    name="cifar100",
    title="CIFAR-100",
    class_names=CLASS_NAMES,
    image_size=32,
    channels=3,
    class_counts={"train": (500,) * 100, "test": (100,) * 100},
    archives={"train": (ARCHIVE,), "test": (ARCHIVE,)},
    examples=_examples,
    more_names={"coarse_label": SUPERCLASSES},
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
describe, load = PUBLISHED.describe, PUBLISHED.load
