"""The report: one HTML file with its pictures inside, which needs no network and no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from molmoact_policy.depth import DepthVQVAE, to_grey
from molmoact_policy.embodiment import ROW
from molmoact_policy.trace import draw_trace
from numpy.typing import NDArray
from PIL import Image

from molmoact_training.evaluation.comparison import Comparison, Evaluated, LooksAt, latency
from molmoact_training.evaluation.metrics import (
    GROUPS,
    Answer,
    Estimate,
    axis_names,
    bin_distance,
    compared_rows,
    definitions,
    failure_reasons,
)

WORST_FRAMES = 6
# Frames closer to each other than this show the same mistake.
APART_S = 1.0
SHOWN_FAILURES = 4
PICTURE_WIDTH = 320
LEAST_REACH = 1e-6  # of an axis of errors: without any, it is as wide as this
COLOURS = ("tab:blue", "tab:orange")
RECORDED_COLOUR = (255, 200, 0)  # RGB, of the recorded trace; a predicted one has the colour of the training overlay

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: left }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
img { max-width: 100% }
.card { border: 1px solid #ccc; padding: .8rem; margin: 1rem 0 } .card img { margin-right: .5rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .5rem;
  max-height: 12rem; overflow: auto }
.small { color: #666; font-size: .85em }
"""


def write_report(comparison: Comparison) -> str:
    """The page."""
    parts = [
        f"<h1>Offline evaluation of {_escaped(_names(comparison))}</h1>",
        _summary(comparison),
        _failures(comparison),
        "<h2>Metrics</h2>",
        _metrics_table(comparison),
        "<p class=small>In brackets the 95 % interval that drawing the episodes again gives (percentile bootstrap). "
        "With few episodes it is too narrow; with one there is none.</p>",
        "<h2>By dimension</h2>",
        _dimensions_tables(comparison),
        "<h2>One episode</h2>",
        _picture(_episode_plot(comparison)),
        "<h2>Errors</h2>",
        _picture(_error_plot(comparison)),
        *(_shown_frames(one, comparison.looks) for one in comparison.candidates),
        "<h2>Definitions</h2>",
        _definitions(),
    ]
    title = f"<title>{_escaped(_names(comparison))}</title>"
    return f'<!doctype html><html lang=en><meta charset="utf-8">{title}<style>{STYLE}</style><body>{"".join(parts)}'


def worst_frames(answers: Iterable[Answer], period: float, count: int = WORST_FRAMES) -> list[Answer]:
    """Those with the largest mean distance in bins, no two of an episode within APART_S."""
    chosen: list[Answer] = []
    usable = [answer for answer in answers if answer.predicted is not None]
    for answer in sorted(usable, key=bin_distance, reverse=True):
        near = (it.episode == answer.episode and abs(it.frame - answer.frame) * period < APART_S for it in chosen)
        if not any(near):
            chosen.append(answer)
        if len(chosen) == count:
            break
    return chosen


def _names(comparison: Comparison) -> str:
    return " and ".join(one.name for one in comparison.candidates)


def _summary(comparison: Comparison) -> str:
    data = comparison.data
    left_out = "; ".join(f"{count} {reason}" for reason, count in data["left_out"].items()) or "nothing"
    lines = [
        f"{data['frames']} frames of {data['episodes']} episodes ({_escaped(str(data['kind']))}); "
        f"left out: {_escaped(left_out)}.",
        "Rows of a reply are compared with the rows that were recorded from its frame on. A reply that does not parse "
        "counts as a failure and nowhere else.",
    ]
    for one in comparison.candidates:
        if not one.conventions.embodiment.confirmed:
            lines.append(
                f"The units of {_escaped(one.name)} are assumed: nobody confirmed the conventions of "
                f"'{_escaped(one.conventions.statistics.key)}'."
            )
    return "".join(f"<p>{line}</p>" for line in lines)


def _failures(comparison: Comparison) -> str:
    rows = []
    for one in comparison.candidates:
        answers, times = one.all_answers(), latency(one.all_answers())
        reasons = failure_reasons(answers)
        listed = "<br>".join(f"{count} × {_escaped(reason)}" for reason, count in reasons.items()) or "none"
        rows.append([one.name, str(len(answers)), listed, _number(times["median_s"]), _number(times["p99_s"])])
    heads = ["checkpoint", "replies", "failures", "median latency (s)", "99th percentile (s)"]
    note = "<p class=small>Latencies are those of this machine, with as many processes as were asked for.</p>"
    return "<h2>Replies</h2>" + _table(heads, rows, raw=(2,)) + note


def _metrics_table(comparison: Comparison) -> str:
    heads = ["metric", *(one.name for one in comparison.candidates)]
    if comparison.difference is not None:
        heads.append("difference")
    rows = []
    for name in _all_metrics(comparison):
        if name.rsplit("/", 1)[-1] not in _axes_of(comparison):
            row = [name, *(_interval(one.metrics.get(name)) for one in comparison.candidates)]
            if comparison.difference is not None:
                row.append(_interval(comparison.difference.get(name)))
            rows.append(row)
    return _table(heads, rows)


def _dimensions_tables(comparison: Comparison) -> str:
    found = [(one.name, one.metrics) for one in comparison.candidates]
    if comparison.difference is not None:
        found.append(("difference", comparison.difference))
    return "".join(f"<h3>{_escaped(name)}</h3>{_dimensions_table(comparison, metrics)}" for name, metrics in found)


def _dimensions_table(comparison: Comparison, metrics: Mapping[str, Estimate]) -> str:
    prefixes = ("l1", "mse", "critical_mse", "bins/exact", "bins/within_1")
    rows = [
        [axis, *(_interval(metrics.get(f"{prefix}/{axis}")) for prefix in prefixes)] for axis in _axes_of(comparison)
    ]
    return _table(["dimension", *prefixes], rows)


def _all_metrics(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(name for one in comparison.candidates for name in one.metrics))


def _axes_of(comparison: Comparison) -> list[str]:
    return axis_names(comparison.candidates[0].conventions.statistics.dimensions)


def _episode_plot(comparison: Comparison) -> Figure:
    """Predicted and recorded first rows over the episode with most frames."""
    first = comparison.candidates[0]
    name = max(first.answers, key=lambda episode: len(first.answers[episode]))
    period, axes = comparison.recordings[name].period, _axes_of(comparison)
    figure = Figure(figsize=(11, 1.5 * len(axes)), layout="constrained")
    panels = figure.subplots(len(axes), 1, sharex=True)
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        recorded = [(answer.frame * period, answer.recorded[0, index]) for answer in first.answers[name]]
        panel.plot(*zip(*recorded, strict=True), color="black", label="recorded", linewidth=1.5)
        for one, colour in zip(comparison.candidates, COLOURS, strict=False):
            said = [
                (answer.frame * period, answer.predicted[0, index])
                for answer in one.answers[name]
                if answer.predicted is not None
            ]
            if said:
                panel.plot(*zip(*said, strict=True), color=colour, label=one.name, linewidth=1, marker=".")
        panel.set_ylabel(f"{axis}\n{_unit(axis)}")
    panels[0].legend(loc="upper right", fontsize="small")
    panels[0].set_title(f"episode {name}: first row of every reply", fontsize="medium")
    panels[-1].set_xlabel("s")
    return figure


def _error_plot(comparison: Comparison) -> Figure:
    """How errors are distributed, and how they grow with the row of a chunk."""
    axes = _axes_of(comparison)
    columns = ROW
    figure = Figure(figsize=(11, 2.2 * (len(axes) // columns + 1)), layout="constrained")
    panels = figure.subplots(len(axes) // columns + 1, columns, squeeze=False)
    for index, axis in enumerate(axes):
        panel = panels[index // columns][index % columns]
        errors = [_errors(one)[:, index] for one in comparison.candidates]
        reach = max(LEAST_REACH, *(np.abs(values).max(initial=0.0) for values in errors))
        for values, colour in zip(errors, COLOURS, strict=False):
            panel.hist(values, bins=25, range=(-reach, reach), color=colour, alpha=0.5)
        panel.set_title(axis + (f" ({_unit(axis)})" if _unit(axis) else ""), fontsize="small")
        panel.set_yticks([])
        panel.tick_params(labelsize="x-small")
    for panel, (group, of_group) in zip(panels[-1], GROUPS.items(), strict=False):
        for one, colour in zip(comparison.candidates, COLOURS, strict=False):
            panel.plot(_errors_by_row(one, of_group), color=colour, marker=".", label=one.name)
        panel.set_title(f"{group} L1 by row", fontsize="small")
        panel.tick_params(labelsize="x-small")
        panel.set_ylim(bottom=0)
    for panel in panels[-1][len(GROUPS) :]:
        panel.set_axis_off()
    return figure


def _errors(one: Evaluated) -> NDArray[np.float64]:
    """[rows of all replies, 7 · A] predicted minus recorded, SI units."""
    dimensions = one.conventions.statistics.dimensions
    found = [_difference(answer) for answer in one.all_answers() if answer.predicted is not None]
    return np.concatenate([np.zeros((0, dimensions)), *found])


def _errors_by_row(one: Evaluated, columns: Sequence[int]) -> list[float]:
    """Mean absolute error in each row of a chunk over columns of every arm."""
    errors = [_difference(answer) for answer in one.all_answers() if answer.predicted is not None]
    longest = max(map(len, errors), default=0)
    chosen = [arm + it for arm in range(0, one.conventions.statistics.dimensions, ROW) for it in columns]
    by_row = [[row_errors[row, chosen] for row_errors in errors if len(row_errors) > row] for row in range(longest)]
    return [float(np.abs(row).mean()) for row in by_row]


def _difference(answer: Answer) -> NDArray[np.float64]:
    assert answer.predicted is not None
    rows = compared_rows(answer)
    return answer.predicted[:rows] - answer.recorded[:rows]


def _shown_frames(one: Evaluated, looks: LooksAt) -> str:
    """Where it was most wrong, and some replies that did not parse."""
    period = one.conventions.embodiment.step_period
    worst = worst_frames(one.all_answers(), period)
    failed = [answer for answer in one.all_answers() if answer.predicted is None][:SHOWN_FAILURES]
    images = _images([*worst, *failed], looks)
    text = f"<h2>{_escaped(one.name)}: where it was most wrong</h2>"
    text += "<p class=small>By the mean distance in bins. Traces: cyan predicted, yellow recorded.</p>"
    text += "".join(_card(answer, images, one.depth_vqvae, period) for answer in worst)
    if failed:
        text += f"<h2>{_escaped(one.name)}: replies that do not parse</h2>"
        text += "".join(_card(answer, images, one.depth_vqvae, period) for answer in failed)
    return text


def _images(answers: Sequence[Answer], looks: LooksAt) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """The first picture of each frame."""
    frames: dict[str, set[int]] = {}
    for answer in answers:
        frames.setdefault(answer.episode, set()).add(answer.frame)
    shown = (look for episode, numbers in frames.items() for look in looks(episode, sorted(numbers)))
    return {(look.episode, look.frame): look.images[0] for look in shown}


def _card(
    answer: Answer,
    images: Mapping[tuple[str, int], NDArray[np.uint8]],
    depth_vqvae: DepthVQVAE | None,
    period: float,
) -> str:
    picture = draw_trace(images[answer.episode, answer.frame], answer.recorded_trace or [])
    picture = _recoloured(images[answer.episode, answer.frame], picture)
    pictures = [draw_trace(picture, answer.predicted_trace or [])]
    pictures += [
        _decoded(depth_vqvae, codes)
        for codes in (answer.predicted_codes, answer.recorded_codes)
        if codes and depth_vqvae
    ]
    distance = bin_distance(answer)
    head = f"episode {answer.episode}, frame {answer.frame} ({answer.frame * period:.2f} s): “{answer.instruction}”"
    facts = answer.error or f"mean distance {distance:.1f} bins"
    depth = " Depth: predicted, then recorded." if answer.predicted_codes and answer.recorded_codes else ""
    shown = "".join(_inline(_resized(it), "JPEG") for it in pictures)
    numbers = "" if answer.predicted is None else _row_table(answer)
    return (
        f"<div class=card><p><b>{_escaped(head)}</b><br>{_escaped(facts)}.{depth}</p>{shown}{numbers}"
        f"<pre>{_escaped(answer.text.strip())}</pre></div>"
    )


def _row_table(answer: Answer) -> str:
    assert answer.predicted is not None
    axes = axis_names(answer.recorded.shape[1])
    rows = [
        [name, *(f"{value:.4f}" for value in values[: compared_rows(answer)].mean(0))]
        for name, values in (("recorded", answer.recorded), ("predicted", answer.predicted))
    ]
    return _table(["mean of rows", *axes], rows)


def _recoloured(plain: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The overlay in the colour of recorded traces."""
    changed = (drawn != plain).any(2)
    result = plain.copy()
    result[changed] = RECORDED_COLOUR
    return result


def _decoded(depth_vqvae: DepthVQVAE, codes: Sequence[int]) -> NDArray[np.uint8]:
    with torch.inference_mode():
        grey = to_grey(depth_vqvae.decode(torch.tensor([list(codes)]))[0, 0])
    return np.repeat(grey[..., None], 3, axis=2)


def _resized(picture: NDArray[np.uint8]) -> Image.Image:
    height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
    return Image.fromarray(picture).resize((PICTURE_WIDTH, height))


def _inline(picture: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return _tag(stream.getvalue(), kind.lower())


def _picture(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return _tag(stream.getvalue(), "png")


def _tag(data: bytes, kind: str) -> str:
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _definitions() -> str:
    items = (f"<dt><code>{name}</code><dd>{_escaped(text)}." for name, text in definitions().items())
    return f"<dl>{''.join(items)}</dl>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], raw: Sequence[int] = ()) -> str:
    """Cells are escaped but for the columns in `raw`."""
    head = "".join(f"<th>{_escaped(text)}" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if place in raw else _escaped(cell)}" for place, cell in enumerate(row))
        for row in rows
    )
    return f"<table><tr>{head}{body}</table>"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _unit(axis: str) -> str:
    return "" if axis.startswith("gripper") else "rad" if axis.startswith("r") else "m"


def _escaped(text: Any) -> str:
    return html.escape(str(text))
