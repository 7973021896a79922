"""What ``gnp bench`` and its commands print of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnpcli.cli.output import print_table, say
from gnpcli.terminal.words import number, percent, plural

MEGA, GIGA = 1e-6, 1e-9

Row = Mapping[str, Any]


def print_steps(result: Row) -> None:
    """Print plain and GNP steps."""
    header = ("", "img/s", "ms/step", "min-max", "compile s", "MB", "GFLOP/step", "of matmul peak")
    title = f"{_about(result)}, {plural(result['devices'], 'device')}"
    _print(title, header, [_step(row) for row in result["measurements"]])
    ratio = result["measurements"][0]["gnp_over_plain"]
    say(f"GNP / plain: {ratio:.3f} (median of {plural(result['rounds'], 'round')})")


def _step(row: Row) -> list[str]:
    return [
        row["name"],
        number(row["images_per_s"], ".1f"),
        number(row["step_ms"], ".1f"),
        f"{row['step_ms_min']:.0f}-{row['step_ms_max']:.0f}",
        number(row["compile_s"], ".1f"),
        number(row["peak_bytes"], ",.0f", scale=MEGA),
        number(row["flops_per_step"], ".1f", scale=GIGA),
        percent(row["share_of_matmul_peak"], digits=0),
    ]


def print_in_memory(result: Row) -> None:
    """Print what feeding from memory costs, for each augmentation."""
    title = (
        f"{result['model']}, batch {result['batch_size']}, {result['image_size']} px, "
        f"{result['dtype']}, {plural(result['devices'], 'device')}"
    )
    header = ("", "empty model img/s", "training img/s", "feed / step", "of the first")
    rows = [
        [
            row["name"],
            number(row["feed_images_per_s"], ",.0f"),
            number(row["images_per_s"], ",.1f"),
            percent(row["feed_share"], digits=1),
            percent(row["relative_rate"], digits=1),
        ]
        for row in result["measurements"]
    ]
    _print(title, header, rows)


def print_streamed(result: Row) -> None:
    """Print how fast files are decoded, in one thread and by the feed."""
    images = plural(result["images"], "file")
    say(f"{images} to {result['image_size']} px, cropped, flipped, normalised, in one thread:")
    for row in result["measurements"]:
        times = f"{row['over_pillow']:.2f} times pillow"
        say(f"  {row['name']:<12}{row['images_per_s']:6,.0f} img/s  {times}")
    feed = result["feed"]
    count = feed["workers"]
    workers = "one worker per core" if count is None else plural(count, "worker")
    say(f"feed, {workers}: {feed['images_per_s']:,.0f} img/s")
    if feed["memory"][0][1] is not None:
        told = [
            f"{number(size, ',.0f')} MB after {number(images)}" for images, size in feed["memory"]
        ]
        say(f"memory: {', '.join(told)}")


def print_telemetry(result: Row) -> None:
    """Print what a step's metrics and guard cost."""
    say(f"{_about(result)}: {result['step_ms']:.1f} ms bare")
    line = f"metrics and guard: {result['step_over_bare']:.4f} times a bare step"
    if result["cpu_step_over_bare"] is not None:
        line += f", {result['cpu_step_over_bare']:.4f} in processor time"
    say(line)
    if result["statistics_ms"] is not None:
        every = plural(result["log_every_steps"], "step")
        share = percent(result["statistics_share"], digits=3)
        say(
            f"adaptive rates: {result['statistics_ms']:.2f} ms every {every}, {share} of a bare "
            "step"
        )


def print_gr(result: Row) -> None:
    """Print every form of GR over plain training."""
    title = (
        f"{_about(result)}, {plural(result['devices'], 'device')}, r {result['r']:g}, alpha "
        f"{result['alpha']:g}; {plural(result['rounds'], 'round')}"
    )
    header = ("", "time", "min-max", "CPU time", "FLOP", "memory", "ms/step", "MB", "compile s")
    _print(title, header, [_form(row) for row in result["measurements"]])
    say("time, CPU time, FLOP and memory as multiples of plain training")


def _form(row: Row) -> list[str]:
    return [
        row["name"],
        number(row["over_plain"], ".3f"),
        f"{row['over_plain_min']:.2f}-{row['over_plain_max']:.2f}",
        number(row["cpu_over_plain"], ".3f"),
        number(row["flops_over_plain"], ".2f"),
        number(row["memory_over_plain"], ".2f"),
        number(row["step_ms"], ".1f"),
        number(row["peak_bytes"], ",.0f", scale=MEGA),
        number(row["compile_s"], ".1f"),
    ]


def print_peer(result: Row) -> None:
    """Print steps beside those of PyTorch."""
    how = "compiled" if result["is_compiled"] else "eager"
    versions = " and ".join(f"{name} {version}" for name, version in result["peer"].items())
    title = (
        f"{_about(result)}, {result['optimizer']}, beside {versions}, {how}; "
        f"{plural(result['rounds'], 'round')}"
    )
    header = (
        "",
        "img/s",
        "ms/step",
        "PyTorch img/s",
        "PyTorch ms/step",
        "times as fast",
        "min-max",
        "in CPU time",
    )
    _print(title, header, [_beside(row) for row in result["measurements"]])
    say(f"logits of both with the same weights differ by {result['difference']:.1e} of the largest")


def _beside(row: Row) -> list[str]:
    return [
        row["name"],
        number(row["images_per_s"], ".1f"),
        number(row["step_ms"], ".1f"),
        number(row["torch_images_per_s"], ".1f"),
        number(row["torch_step_ms"], ".1f"),
        number(row["times_as_fast"], ".2f"),
        f"{row['times_as_fast_min']:.2f}-{row['times_as_fast_max']:.2f}",
        number(row["cpu_times_as_fast"], ".2f"),
    ]


def print_scale(result: Row) -> None:
    """Print what each size took, and how that grows."""
    rows = []
    for each in result["measurements"]:
        of = f"{each['name']}, by {each['of']}"
        for cost in each["costs"]:
            rows.append([of, *_of_size(cost), "", ""])
        rows[-1][-2:] = [number(each[f"{what}_exponent"], ".2f") for what in ("time", "memory")]
    header = ("", "size", "s", "processor s", "peak MB", "time ~ n^", "memory ~ n^")
    _print("growth", header, rows)
    say("an exponent is that of the growth over the smallest size; - grew too little to tell")


def _of_size(cost: Row) -> list[str]:
    return [
        number(cost["size"]),
        number(cost["seconds"], ".2f"),
        number(cost["cpu_s"], ".2f"),
        number(cost["peak_bytes"], ",.0f", scale=MEGA),
    ]


def print_start(result: Row) -> None:
    """Print the seconds to the first step, and the programs that took longest to compile."""
    rows = [
        [row["name"], number(row["elapsed_s"], ".1f"), number(row["cpu_s"], ".1f")]
        for row in result["measurements"]
    ]
    _print(_about(result), ("since the command", "s", "processor s"), rows)
    longest = ", ".join(f"{row['name']} {row['compile_s']:.1f} s" for row in result["longest"])
    say(f"{plural(result['programs'], 'program')} compiled: {longest}")


def _about(result: Row) -> str:
    return f"{result['model']}, batch {result['batch_size']}, {result['dtype']}"


def _print(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print_table(header, rows, title=title, numbers=header[1:])
