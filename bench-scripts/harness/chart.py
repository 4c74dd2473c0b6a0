"""Draws horizontal bars, with whiskers, as SVG. Knows nothing of what they mean."""

from html import escape

# The plot lies between the margins: names on the left, values on the right.
WIDTH, LEFT, RIGHT, TOP = 960, 290, 250, 96
BAR, GAP, BETWEEN, HEADING = 13, 3, 14, 44
WORST = 6                               # bars end here; a longer one is cut off, and says so
NAMED = {"nginx": "a", "haproxy": "b", "haproxy-splice": "c", "tembuku": "d", "tembuku-observed": "e"}

# The panel is opaque, so that whatever is behind it does not matter; it turns dark where the reader
# wants that.
STYLE = """\
.panel{fill:#ffffff;stroke:#d0d4da}.text{fill:#1d2430}.faint{fill:#5a6472}.grid{stroke:#e3e6ea}.one{stroke:#1d2430;stroke-dasharray:4 3}
.whisker{stroke:#1d2430}.a{fill:#8fa3b8}.b{fill:#c9a36b}.c{fill:#a97f45}.d{fill:#0f7f6e}.e{fill:#66b3a6}
text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif}.title{font-size:17px;font-weight:600}.heading{font-size:14px;font-weight:600}
.name{font-weight:600}
@media (prefers-color-scheme:dark){.panel{fill:#161b22;stroke:#3a424d}.text{fill:#e6e9ee}.faint{fill:#a0a9b5}.grid{stroke:#2b323c}
.one{stroke:#e6e9ee}.whisker{stroke:#e6e9ee}.a{fill:#7388a0}.b{fill:#b98f55}.c{fill:#8f6a36}.d{fill:#2bb39d}.e{fill:#1f6e62}}"""


def text(x, y, words, kind="text", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def draw(title, notes, sections):
    """sections: [(heading, [(name, [(label, {median, min, max}, words)])])]; the line at 1 is what
    bars are compared with."""
    highest = max(spread["max"] for _, groups in sections for _, bars in groups for _, spread, _ in bars)
    span = min(WORST, max(1.25, highest)) * 1.02
    scale = (WIDTH - LEFT - RIGHT) / span
    y, parts = TOP, []
    for heading, groups in sections:
        y += HEADING
        first, drawn = y, [text(20, y - 14, heading, "heading text")]
        for name, bars in groups:
            drawn.append(text(20, y + BAR - 2, name, "name text"))
            for label, spread, words in bars:
                middle, end = y + BAR / 2, min(spread["median"], span)
                drawn.append(text(LEFT - 8, y + BAR - 2, label, "faint", "end"))
                drawn.append(f'<rect x="{LEFT}" y="{y}" width="{max(1, end * scale):.1f}" height="{BAR}" '
                             f'class="{NAMED.get(label, "a")}"/>')
                low, high = (LEFT + max(0, min(spread[key], span)) * scale for key in ("min", "max"))
                if spread["min"] < spread["max"] and low < LEFT + span * scale:
                    drawn.append(line(low, middle, high, middle, "whisker"))
                    drawn += [line(x, middle - 3, x, middle + 3, "whisker") for x, key in ((low, "min"), (high, "max"))
                              if spread[key] <= span]
                more = " (bar cut off)" if spread["median"] > span else ""
                drawn.append(text(WIDTH - RIGHT + 12, y + BAR - 2, f"{spread['median']:.2f}{more}", "text"))
                drawn.append(text(WIDTH - 20, y + BAR - 2, words, "faint", "end"))
                y += BAR + GAP
            y += BETWEEN
        grid = [0, 1, *range(2, int(span) + 1)] if span > 1.5 else [0, 0.25, 0.5, 0.75, 1]
        lines = [line(LEFT + at * scale, first - 4, LEFT + at * scale, y - BETWEEN, "one" if at == 1 else "grid") for at in grid]
        parts += lines + drawn             # in this order: the grid lies behind the bars
        parts += [text(LEFT + at * scale, y + 4, f"{at:g}", "faint", "middle") for at in grid]
        y += 10
    height = y + 20
    head = [text(20, 34, title, "title text")] + [text(20, 56 + 18 * number, note, "faint") for number, note in enumerate(notes)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>",
        f'<rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>', *head, *parts, "</svg>"]) + "\n"
