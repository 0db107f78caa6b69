"""Draws the figures of figures.py as PNG, with matplotlib: white ground (they are read in dark pages, too), colours of Okabe and Ito, which the
colour-blind can tell apart, and a mark of its own for every class and type."""
import io
import itertools
import math

from comparison import stats
from comparison.figures import CLASSES

COLOURS = {"constant": "#0072B2", "state": "#009E73", "grows": "#D55E00", "variant": "#B0569A", "control": "#666666"}
MARKS = {"constant": "o", "state": "D", "grows": "s", "variant": "^", "control": "v"}
LINES = ["#0072B2", "#D55E00", "#009E73", "#B0569A", "#56B4E9", "#E69F00", "#777777"]  # the reference is black
LINE_MARKS = ["s", "^", "D", "v", "P", "X", "<"]
NATS = "nats a token"
DPI = 130
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
         "axes.edgecolor": "#555555", "xtick.color": "#333333", "ytick.color": "#333333", "text.color": "#222222", "axes.labelcolor": "#222222",
         "font.family": "DejaVu Sans", "figure.dpi": DPI}


class Missing(Exception):
    """matplotlib is not there, or too old."""


def load():
    try:
        import matplotlib
    except ImportError:
        raise Missing("matplotlib is missing (Debian: apt-get install python3-matplotlib, else pip install matplotlib)") from None
    found = tuple(int(part) for part in matplotlib.__version__.split(".")[:2])
    if found < (3, 7):  # legends outside of the axes
        raise Missing(f"matplotlib is {matplotlib.__version__}, wanted is 3.7 or newer")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def draw(pyplot, figure):
    """PNG bytes."""
    with pyplot.rc_context(STYLE):
        drawn = DRAWERS[figure.drawer](pyplot, figure.shown)
        data = io.BytesIO()
        drawn.savefig(data, format="png")
        pyplot.close(drawn)
    return fewer_colours(data.getvalue())


def fewer_colours(png):
    """The same picture with a palette: a third of the bytes. matplotlib brings Pillow along."""
    from PIL import Image
    image, small = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


# -- labels -------------------------------------------------------------------------------------------------------------------------------------------
def short(label):
    return label.split(" (")[0]


def spread(wanted, gap, low, high):
    """Places near the wanted ones, in their order, at least `gap` apart, within [low, high] where they fit: least squares, by pooling neighbours."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    blocks = []
    for rank, at in enumerate(order):
        blocks.append([wanted[at] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (value, count), (before, earlier) = blocks.pop(), blocks.pop()
            blocks.append([(value * count + before * earlier) / (count + earlier), count + earlier])
    flat = [value for value, count in blocks for _ in range(count)]
    top = max(low, high - (len(wanted) - 1) * gap)
    places = [0.0] * len(wanted)
    for rank, at in enumerate(order):
        places[at] = min(max(flat[rank], low), top) + rank * gap
    return places


def label_ends(axis, ends, size=8):
    """Names lines beside the right edge, apart from each other. ends: [(x, y, text, colour, bold)]"""
    pixels = axis.transData.transform([(x, y) for x, y, *_ in ends])
    box = axis.get_window_extent()
    gap = size * 1.25 * axis.figure.dpi / 72
    places = spread([y for _, y in pixels], gap, box.y0 + gap / 2, box.y1 - gap / 2)
    for (x, y, text, colour, bold), (x_pixel, y_pixel), place in zip(ends, pixels, places):
        axis.annotate(text, (x_pixel, y_pixel), (box.x1 + 14 * axis.figure.dpi / 72, place), xycoords="figure pixels", textcoords="figure pixels", color=colour,
                      fontsize=size, va="center", fontweight="bold" if bold else None, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4})


def overlap(one, other):
    return max(0, min(one[2], other[2]) - max(one[0], other[0])) * max(0, min(one[3], other[3]) - max(one[1], other[1]))


def leader(start, end, unit):
    """Small boxes along the line from a mark to the middle of its name, as far as it is seen."""
    points = [(start[0] + (end[0] - start[0]) * at / 12, start[1] + (end[1] - start[1]) * at / 12) for at in range(1, 9)]
    return [(x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit) for x, y in points]


def label_points(axis, points, bars, size=7.5):
    """Names marks beside them: of sixteen directions and growing distances the place that covers least, bold names first. points: [(x, y, text, colour, bold)];
    bars: [(x, low, high)], rather not written over."""
    from matplotlib.patheffects import withStroke
    figure = axis.figure
    renderer, unit = figure.canvas.get_renderer(), figure.dpi / 72
    frame = axis.get_window_extent()
    pixels = [axis.transData.transform((x, y)) for x, y, *_ in points]
    marks = [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in pixels]
    taken, written = [], []
    for x, low, high in bars:
        (left, bottom), (_, top) = axis.transData.transform([(x, low), (x, high)])
        taken.append((left - 2 * unit, bottom, left + 2 * unit, top))
    for (x, y), (_, _, text, colour, bold) in sorted(zip(pixels, points), key=lambda item: (not item[1][4], -item[0][1])):
        probe = axis.text(0, 0, text, fontsize=size, fontweight="bold" if bold else None)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        half = (extent.width / 2 + 1.5 * unit, extent.height / 2)
        best = None
        for distance in (3, 9, 17, 26, 36, 48, 62, 78):
            for turn in range(16):
                angle = 2 * math.pi * turn / 16
                cx = x + (distance + 4) * unit * math.cos(angle) + half[0] * round(math.cos(angle), 1)
                cy = y + (distance + 4) * unit * math.sin(angle) + half[1] * round(math.sin(angle), 1)
                box = (cx - half[0], cy - half[1], cx + half[0], cy + half[1])
                outside = box[0] < frame.x0 + 2 or box[2] > frame.x1 + 8 * unit or box[1] < frame.y0 + 2 or box[3] > frame.y1
                cost = sum(overlap(box, other) for other in taken) + 3 * sum(overlap(box, other) for other in marks + written)
                cost += (1e6 if outside else 0) + distance * 8 * unit
                steps = leader((x, y), (cx, cy), unit) if distance > 8 else []
                cost += 4 * sum(overlap(step, other) for step in steps for other in written + [mark for mark in marks if overlap(mark, (x, y, x + 1, y + 1)) == 0])
                if best is None or cost < best[0]:
                    best = (cost, cx, cy, box, distance, steps)
        _, cx, cy, box, distance, steps = best
        written.append(box)
        taken += steps
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3, "alpha": 0.8} if distance > 8 else None
        axis.annotate(text, (x, y), (cx, cy), xycoords="figure pixels", textcoords="figure pixels", ha="center", va="center", fontsize=size, color=colour,
                      fontweight="bold" if bold else None, annotation_clip=False, arrowprops=line, path_effects=[withStroke(linewidth=2, foreground="white")])


def settle(figure):
    """Lays the figure out for good, so that pixels of labels stay where they are."""
    figure.canvas.draw()
    figure.set_layout_engine("none")


def class_legend(figure, classes):
    """The few classes of dots, in a row below the axes, where they hide nothing."""
    from matplotlib.lines import Line2D
    shown = [name for name in CLASSES if name in classes]
    handles = [Line2D([], [], color=COLOURS[name], marker=MARKS[name], linestyle="", markersize=5, label=CLASSES[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8, handletextpad=0.1)


# -- dots ---------------------------------------------------------------------------------------------------------------------------------------------
def dots(pyplot, shown):
    panels = shown["panels"]
    heights = [len(panel["rows"]) + 1.5 for panel in panels]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8.2, 0.215 * sum(heights) + 0.55 * len(panels) + 0.3), layout="constrained", squeeze=False,
                                   gridspec_kw={"height_ratios": heights})
    for axis, panel in zip(axes[:, 0], panels):
        dot_rows(axis, panel)
    class_legend(figure, {row["class"] for panel in panels for row in panel["rows"]})
    return figure


def dot_rows(axis, panel):
    rows = panel["rows"]
    base = next((row["losses"] for row in rows if row["reference"]), None)
    means = [stats.mean(row["losses"]) for row in rows]
    limit = (stats.mean(base) if base else min(means)) + panel["far"]
    near = [loss for row in rows for loss in row["losses"] if loss <= limit]
    edge = max(near) + 0.06 * (max(near) - min(near)) + 1e-3
    for place, (row, mean) in enumerate(zip(rows, means)):
        colour, mark = COLOURS[row["class"]], MARKS[row["class"]]
        axis.axhline(place, color="#eeeeee", linewidth=0.6, zorder=0)
        if mean > limit:
            axis.plot(edge, place, marker=">", color=colour, markersize=6, clip_on=False)
            axis.annotate(f"off the scale, {mean:.3f}", (edge, place), (-8, 0), textcoords="offset points", ha="right", va="center", fontsize=8, color=colour)
            continue
        axis.plot(row["losses"], [place] * len(row["losses"]), linestyle="", marker=mark, color=colour, markersize=4.5, alpha=0.7, markeredgewidth=0)
        if len(row["losses"]) > 1:
            axis.plot([mean, mean], [place - 0.36, place + 0.36], color=colour, linewidth=2, solid_capstyle="butt")
    if base:
        axis.axvspan(min(base), max(base), color="#000000", alpha=0.06, linewidth=0, zorder=0)
        axis.axvline(stats.mean(base), color="black", linewidth=0.8, zorder=0)
    axis.set_ylim(len(rows) - 0.3, -0.8)
    axis.set_xlim(min(near) - 0.03 * (edge - min(near)), edge)
    axis.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    for text, row in zip(axis.get_yticklabels(), rows):
        text.set_color(COLOURS[row["class"]])
        text.set_fontweight("bold" if row["reference"] else "normal")
    axis.tick_params(axis="y", length=0)
    for place, (row, mean) in enumerate(zip(rows, means)):
        axis.annotate(f"{mean:.3f}   n={len(row['losses'])}", (1, place), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8)
    axis.annotate("mean   seeds", (1, -0.8), (10, 1), xycoords=("axes fraction", "data"), textcoords="offset points", va="bottom", fontsize=7.5, color="#555555")
    if base:
        axis.annotate("reference", (stats.mean(base), -0.8), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color="#555555")
    axis.set_xlabel(f"loss on {panel['split']}, {NATS}")


# -- quality and cost ---------------------------------------------------------------------------------------------------------------------------------
def plane(pyplot, shown):
    points = shown["points"]
    base = next((point["loss"].value for point in points if point["reference"]), min(point["loss"].value for point in points))
    near = [point["loss"] for point in points if point["loss"].value <= base + shown["far"]]
    low, high = min(loss.low for loss in near), max(loss.high for loss in near)
    edge = high + 0.09 * (high - low) + 1e-3
    keys = (["rate"] if shown["rated"] else []) + ["kib"]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(6.1 * len(keys), 6.4), layout="constrained", sharey=True, squeeze=False)
    for axis, key in zip(axes[0], keys):
        placed = [(point[key] / (1e6 if key == "rate" else 1), min(point["loss"].value, edge), point) for point in points if point[key]]
        for x, y, point in placed:
            far = point["loss"].value > edge
            axis.plot(x, y, marker="^" if far else MARKS[point["class"]], color=COLOURS[point["class"]], markersize=7.5 if point["reference"] else 5.5,
                      markeredgecolor="black" if point["reference"] else "white", markeredgewidth=1.2 if point["reference"] else 0.4, zorder=5, clip_on=False)
            if not far:
                axis.plot([x, x], [point["loss"].low, point["loss"].high], color=COLOURS[point["class"]], linewidth=0.8, alpha=0.6)
        xs = [x for x, _, _ in placed]
        if key == "kib":
            axis.set_xscale("log", base=2)
            axis.set_xlim(min(xs) / 1.6, max(xs) * 3.2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axis.set_xlabel(f"cached, KiB a layer after {shown['length']:,} tokens (logarithmic)")
        else:
            span = max(xs) - min(xs) or max(xs)
            axis.set_xlim(min(xs) - 0.08 * span, max(xs) + 0.16 * span)
            axis.set_xlabel("training speed, million tokens/s")
        axis.grid(alpha=0.2)
    axes[0, 0].set_ylim(low - 0.06 * (high - low), edge)
    axes[0, 0].set_ylabel(f"loss on {shown['split']}, {NATS}")
    class_legend(figure, {point["class"] for point in points})
    settle(figure)
    for axis, key in zip(axes[0], keys):
        label_plane(axis, [(point[key] / (1e6 if key == "rate" else 1), point) for point in points if point[key]], edge)
    return figure


def label_plane(axis, placed, edge):
    names = []
    for x, point in placed:
        far = point["loss"].value > edge
        text = short(point["label"]) + (f" ({point['loss'].value:.2f}, above)" if far else "")
        names.append((x, min(point["loss"].value, edge), text, COLOURS[point["class"]], point["reference"]))
    bars = [(x, point["loss"].low, point["loss"].high) for x, point in placed if point["loss"].value <= edge and point["loss"].low < point["loss"].high]
    label_points(axis, names, bars)


# -- lines --------------------------------------------------------------------------------------------------------------------------------------------
def looks_of(*panels):
    """{type: (colour, mark, width)} of panels' lines: a type looks the same everywhere, and no two of a panel alike as long as there are looks enough."""
    looks, every = {}, [(colour, mark, 1.3) for colour, mark in zip(LINES, LINE_MARKS)]
    for lines in panels:
        used = [looks[line["kind"]] for line in lines if line["kind"] in looks]
        free = itertools.cycle([look for look in every if look not in used] or every)
        for line in lines:
            if line["kind"] not in looks:
                looks[line["kind"]] = ("black", "o", 2.2) if line["reference"] else next(free)
    return looks


def named(line):
    return f"{short(line['label'])}, n={line['seeds']}"


def recall(pyplot, shown):
    lines, buckets = shown["lines"], shown["buckets"]
    looks = looks_of(lines)
    figure, axis = pyplot.subplots(figsize=(9.2, 4.8), layout="constrained")
    apart = next((at for at, (text, _) in enumerate(buckets) if not text[0].isdigit()), None)
    for rank, line in enumerate(lines):
        colour, mark, width = looks[line["kind"]]
        shift = 0.5 * ((rank + 0.5) / len(lines) - 0.5)
        points = [(x + shift, mean) for x, mean in line["points"]]
        joined = [(x, mean.value) for at, (x, mean) in enumerate(points) if at != apart]
        axis.plot(*zip(*joined), color=colour, linewidth=width * 0.7, alpha=0.8)
        for x, mean in points:
            axis.plot([x, x], [mean.low, mean.high], color=colour, linewidth=1)
            axis.plot(x, mean.value, marker=mark, color=colour, markersize=4.5)
    if apart is not None:
        axis.axvline(apart - 0.5, color="#999999", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(buckets)), [f"{text}\n({tokens / 1000:,.{0 if tokens >= 1e4 else 1}f} k targets)" for text, tokens in buckets], fontsize=8)
    axis.set_xlabel("tokens since the target's bigram stood last in the visible text")
    axis.set_ylabel(f"loss on {shown['split']} minus {short(shown['reference'])}'s,\n{NATS}")
    axis.grid(axis="y", alpha=0.25)
    axis.margins(x=0.02)
    reserve_right(figure, [(axis, [named(line) for line in lines])])
    label_ends(axis, [(line["points"][-1][0] + 0.5 * ((rank + 0.5) / len(lines) - 0.5), line["points"][-1][1].value, named(line), looks[line["kind"]][0], line["reference"])
                      for rank, line in enumerate(lines)])
    return figure


def reserve_right(figure, panels):
    """Room for names right of the axes, by invisible text that the layout respects; then nothing moves any more. panels: [(axes, names)]"""
    texts = [axis.annotate(max(names, key=len), (1, 0.5), (18, 0), xycoords="axes fraction", textcoords="offset points", fontsize=8, fontweight="bold", alpha=0) for axis, names in panels]
    settle(figure)
    for text in texts:
        text.remove()


def contexts(pyplot, shown):
    panels = shown["panels"]
    looks = looks_of(*(panel["lines"] for panel in panels))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6.6 * len(panels), 4.9), layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels):
        for rank, line in enumerate(panel["lines"]):
            colour, mark, width = looks[line["kind"]]
            aside = 2 ** (0.2 * ((rank + 0.5) / len(panel["lines"]) - 0.5))  # so that bars stand side by side
            axis.plot([x * aside for x, _ in line["points"]], [mean.value for _, mean in line["points"]], color=colour, marker=mark, markersize=4.5, linewidth=width)
            for x, mean in line["points"]:
                x *= aside
                axis.plot([x, x], [mean.low, mean.high], color=colour, linewidth=0.9, alpha=0.6)
        axis.set_xscale("log", base=2)
        ticks = sorted({x for line in panel["lines"] for x, _ in line["points"]})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xlabel("tokens of visible context (logarithmic)")
        axis.set_ylabel(f"loss on {shown['split']}, {NATS}")
        axis.set_title(f"{'beyond' if panel['beyond'] else 'up to'} the trained length, {panel['trained']:,}", fontsize=9)
        axis.grid(axis="y", alpha=0.25)
    reserve_right(figure, [(axis, [f"{named(line)}: 0.000" for line in panel["lines"]]) for axis, panel in zip(axes[0], panels)])
    for axis, panel in zip(axes[0], panels):
        label_ends(axis, [(line["points"][-1][0], line["points"][-1][1].value, f"{named(line)}: {line['points'][-1][1].value:.3f}", looks[line["kind"]][0], line["reference"])
                          for line in panel["lines"]])
    return figure


def curve_lines(axis, lines, looks, mark_them):
    for line in lines:
        colour, mark, width = looks[line["kind"]]
        xs, means = [x for x, _ in line["points"]], [mean for _, mean in line["points"]]
        axis.plot(xs, [mean.value for mean in means], color=colour, linewidth=width * 0.8, marker=mark if mark_them else None, markersize=3.5)
        axis.fill_between(xs, [mean.low for mean in means], [mean.high for mean in means], color=colour, alpha=0.1, linewidth=0)
    axis.grid(alpha=0.2)


def curves(pyplot, shown):
    lines = shown["lines"]
    looks = looks_of(lines)
    figure, axis = pyplot.subplots(figsize=(8.6, 5), layout="constrained")
    curve_lines(axis, lines, looks, False)
    axis.set_xlabel("million tokens trained on")
    axis.set_ylabel(f"validation loss, {NATS}")
    if shown["inset"]:
        axis = ends_of_curves(axis, lines, looks)
        settle(figure)
    else:
        reserve_right(figure, [(axis, [named(line) for line in lines])])
    label_ends(axis, [(line["points"][-1][0], line["points"][-1][1].value, named(line), looks[line["kind"]][0], line["reference"]) for line in lines], size=7.5)
    return figure


def ends_of_curves(axis, lines, looks):
    """The last 30 % in the empty corner above falling curves, where types differ by less than the width of a line."""
    end = max(x for line in lines for x, _ in line["points"])
    late = [mean for line in lines for x, mean in line["points"] if x >= 0.7 * end]
    inset = axis.inset_axes([0.33, 0.36, 0.37, 0.6])
    curve_lines(inset, lines, looks, True)
    pad = 0.04 * (max(mean.high for mean in late) - min(mean.low for mean in late))
    inset.set_xlim(0.7 * end, end * 1.005)
    inset.set_ylim(min(mean.low for mean in late) - pad, max(mean.high for mean in late) + pad)
    inset.tick_params(labelsize=7.5)
    inset.set_title("the last 30 %", fontsize=8)
    return inset


# -- speeds -------------------------------------------------------------------------------------------------------------------------------------------
def speeds(pyplot, shown):
    rows, order = shown["rows"], shown["contexts"]
    thick = 0.8 / len(order)
    figure, axis = pyplot.subplots(figsize=(8.2, 0.36 * len(rows) + 1.2), layout="constrained")
    for place, row in enumerate(rows):
        colour = COLOURS[row["class"]]
        for at, context in enumerate(order):
            rate = row["rates"].get(context)
            y = place - 0.4 + thick * (at + 0.5)
            if rate:
                alpha = 0.4 + 0.6 * at / max(1, len(order) - 1)
                axis.barh(y, rate / 1e6, thick * 0.92, color=colour, alpha=alpha)
                name = f"  at {shown['lengths'][context]:,} tokens" if place == 0 else ""
                axis.annotate(f"{rate / 1e6:.2f}{name}", (rate / 1e6, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    for text, row in zip(axis.get_yticklabels(), rows):
        text.set_color(COLOURS[row["class"]])
        text.set_fontweight("bold" if row["reference"] else "normal")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("training speed, million tokens/s")
    axis.margins(x=0.1)
    class_legend(figure, {row["class"] for row in rows})
    return figure


DRAWERS = {"dots": dots, "plane": plane, "recall": recall, "contexts": contexts, "curves": curves, "speeds": speeds}
