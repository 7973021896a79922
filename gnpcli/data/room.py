"""Whether images in memory have room on the devices, told before anything is placed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnpcli.config.schema import DataConfig
from gnpcli.errors import DataError
from gnpcli.terminal.words import size

if TYPE_CHECKING:
    from gnpcli.data.base import DataInfo

_LESS_OR_MORE = "take smaller images (data.image_size), or more devices with data.placement=sharded"


def bytes_on_each(config: DataConfig, data: DataInfo, devices: int) -> int:
    """Return the bytes of images that lie on each of some devices through a run.

    These are training images, and a share of the held-out ones. Of streamed images it is 0.
    """
    if data.is_streamed:
        return 0
    held_out = share(data.num_validation + data.num_test, devices)
    image = data.image_size * data.image_size * data.channels
    return image * (train_on_each(config, data.num_train, devices) + held_out)


def train_on_each(config: DataConfig, num_train: int, devices: int) -> int:
    """Return how many of the training images in memory each of some devices has, or bytes."""
    return num_train if config.placement == "replicated" else share(num_train, devices)


def share(rows: int, devices: int) -> int:
    """Return how many of some rows, or bytes, each of some devices has at most."""
    return -(-rows // devices)


def check_room(config: DataConfig, data: DataInfo, devices: int, *, can_stream: bool) -> None:
    """Refuse a data set whose images are more than the memory of a device.

    Args:
        config: Of the run.
        data: The sizes of its images.
        devices: How many share a batch.
        can_stream: Whether its source can stream, as `gnpcli.data.registry.can_stream` says.

    Raises:
        DataError: It is more. The message says what to set instead.
    """
    images = data.num_train + data.num_validation + data.num_test
    num_bytes = images * data.image_size * data.image_size * data.channels
    each = bytes_on_each(config, data, devices)
    check_bytes(config, num_bytes, each, devices, can_stream=can_stream)


def check_bytes(
    config: DataConfig, images: int, each: int, devices: int, *, can_stream: bool = False
) -> None:
    """Refuse images that are more than the memory of a device.

    Where the device does not say what it has, nothing is refused.

    Args:
        config: Names the data set.
        images: Bytes of all of them.
        each: Bytes that are to lie on each device.
        devices: How many share a batch.
        can_stream: Whether that is a way out.

    Raises:
        DataError: See above.
    """
    from gnpcli.devices.memory import device_memory

    there = device_memory(devices)
    if there is None or each <= there:
        return
    taken = size(each) if each == images else f"{size(each)} of {size(images)}"
    shared = share(images, devices)
    ways = []
    if shared < each and shared <= there:
        ways.append(f"data.placement=sharded ({size(shared)} on each)")
    if can_stream:
        ways.append("data.stream=true")
    remedy = f"set {' or '.join(ways)}" if ways else _LESS_OR_MORE
    raise DataError(
        f"the images of {config.name} take {taken} on each device, which has {size(there)}: "
        f"{remedy}"
    )
