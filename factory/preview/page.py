"""A preview as one HTML file that needs nothing else: no network, no script but its own few lines."""

import base64
import os
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

from factory.config.refusal import refuse
from factory.data.media import read_image, read_video
from factory.data.media.video import Frames
from factory.data.record import BadRow, Medium
from factory.preview import words
from factory.preview.samples import Lengths, Preview, Sample, Side, Token, stretches
from factory.preview.visible import NEWLINE, in_line, visible
from factory.preview.words import bar_length, counted, described, origins, sizes, span, where
from factory.preview.words import origin as named

_ROOM = Path(__file__).parent
_STILLS = Frames(fps=None, most=3)  # of a video
_THUMBNAIL = (160, 160)


def write(preview: Preview, path: Path) -> None:
    """Aside and renamed: there is never half a page."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(page(preview), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        wrong = f"it cannot be written ({error.strerror or error})"
        raise refuse(
            "preview-page",
            f"preview.html={path}",
            wrong,
            because="a preview's page is one HTML file, and nothing else is written over",
            fix="name a file that ends in .html, in a folder that is there and can be written",
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def page(preview: Preview) -> str:
    script = (_ROOM / "page.js").read_text(encoding="utf-8")
    title = preview.settings.get("data", "")
    return Template((_ROOM / "page.html").read_text(encoding="utf-8")).substitute(
        title=_line(f"Preview of {title}" if title else "Preview"),
        style=(_ROOM / "page.css").read_text(encoding="utf-8"),
        script=script,
        # whatever stands in the data: nothing but this very script runs
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        settings="".join(_term(name, value) for name, value in preview.settings.items()),
        read=f"{preview.data['rows']:,}",
        counts="".join(_term(name, value) for name, value in counted(preview) if name != "rows"),  # the bar has them
        rows=_rows(preview),
        lengths="" if preview.lengths is None else _lengths(preview.lengths),
        notes="".join(f"<p class='note'>{_line(note)}</p>" for note in preview.notes),
        samples="".join(_sample(number, each) for number, each in enumerate(preview.samples, start=1)),
    )


def _line(text: str) -> str:
    return escape(in_line(text))


def _term(name: str, value: str) -> str:
    return f"<div><dt>{_line(name)}</dt><dd>{_line(value)}</dd></div>"


def _rows(preview: Preview) -> str:
    """A bar of what became of the rows, and which are dropped and why."""
    data = preview.data
    parts = {
        "trained": data["used"],
        "held out": data["validation"],
        "not sampled": data["not_sampled"],
        "dropped": sum(data["dropped"].values()),
    }
    there = [(name, name.replace(" ", "-"), count) for name, count in parts.items() if count]
    bar = "".join(f"<i class='{kind}' style='flex-grow:{count}'></i>" for _, kind, count in there)
    legend = "".join(f"<li><i class='{kind}'></i>{name} <b>{count:,}</b></li>" for name, kind, count in there)
    made = f"<div class='stack' aria-hidden='true'>{bar}</div><ul class='legend'>{legend}</ul>"
    if preview.dropped:
        lines = "".join(
            f"<tr><td class='number'>{each.count:,}</td><td>{_line(each.reason)}</td><td>{_line(where(each))}</td></tr>"
            for each in preview.dropped
        )
        head = "<tr><th class='number'>Rows</th><th>Dropped because</th><th>Where</th></tr>"
        made += f"<div class='wide'><table><thead>{head}</thead><tbody>{lines}</tbody></table></div>"
    return made


def _lengths(lengths: Lengths) -> str:
    most = max(each.rows for each in lengths.bins)
    limit = f"<tr class='limit'><th></th><td colspan='2'>max_length {lengths.max_length:,}</td></tr>"
    lines = list[str]()
    for each in lengths.lines:
        if each is None:
            lines.append(limit)
            continue
        bar = f"<i style='width:{bar_length(each.rows, most, 1000) / 10:g}%'></i>"
        lines.append(
            f"<tr><th class='number' scope='row'>{span(each)}</th><td class='bar'>{bar}</td>"
            f"<td class='number'>{each.rows:,}</td></tr>"
        )
    head = "<thead class='unseen'><tr><th>Tokens</th><th></th><th>Rows</th></tr></thead>"
    return (
        f"<section><h2>Lengths</h2><p>{_line(described(lengths))}</p>"
        f"<table class='lengths'>{head}<tbody>{''.join(lines)}</tbody></table></section>"
    )


def _sample(number: int, sample: Sample) -> str:
    words = {None: "", True: "👍 desirable", False: "👎 undesirable"}[sample.label]
    label = f"<span class='label'>{words}</span>" if words else ""
    size = f"<span>{sizes(sample.sides[0])}</span>" if len(sample.sides) == 1 else ""
    summary = f"<h3>Sequence {number}</h3><span>{escape(origins(sample))}</span>{size}{label}"
    sides = "".join(_side(number, sample, side) for side in sample.sides)
    return f"<details open><summary>{summary}</summary>{_media(sample.media)}<div class='sides'>{sides}</div></details>"


def _side(number: int, sample: Sample, side: Side) -> str:
    heading = f"<h4>{side.name} <span>{sizes(side)}</span></h4>" if side.name else ""
    runs = list[str]()
    for border, run in stretches(side.tokens, sample.borders):
        if border is not None:
            runs.append(f"<span class='border'>{escape(named(border))}</span>")
        runs.append(_run(run))
    name = f"tokens of sequence {number}{', ' * bool(side.name)}{side.name}; arrow keys walk through them"
    body = f"<div class='tokens' tabindex='0' role='group' aria-label='{name}'>{''.join(runs)}</div>"
    return f"<div class='side'>{heading}{body}</div>"


def _run(run: list[Token]) -> str:
    inside = "".join(map(_token, run))
    if not run[0].trained:
        return f"<span>{inside}</span>"
    weight = run[0].weight
    shown = f"<b class='weight'>&times;{weight:g}</b>" if weight != 1 else ""
    return f"<mark data-weight='{weight:g}'>{shown}{inside}</mark>"


def _token(token: Token) -> str:
    kind = " class='special'" if token.special else ""
    repeated, ids = "", " ".join(map(str, token.ids))
    if token.special and len(token.ids) > 1:
        repeated, ids = f"<b class='times'>&times;{len(token.ids)}</b>", str(token.ids[0])
    text = escape(visible(token.text)).replace(f"{NEWLINE}\n", f"<s>{NEWLINE}</s>\n")
    return f"<i{kind} data-ids='{ids}'>{text}{repeated}</i>"


def _media(media: tuple[Medium, ...]) -> str:
    if not media:
        return ""
    shown = "".join(
        f"<figure>{_thumbnails(each)}<figcaption>{_line(_name(each.place))}</figcaption></figure>" for each in media
    )
    return f"<div class='images' role='group' aria-label='{words.media(media)}'>{shown}</div>"


def _name(path: str) -> str:
    """Nothing where the image itself stands in the path's place."""
    return "" if path.lower().startswith("data:") else path.rpartition("/")[2]


def _thumbnails(medium: Medium) -> str:
    """An image, or a video's first, last and middle frames, small. One that cannot be read here is said to be so."""
    from PIL import Image

    try:
        if medium.kind == "image":
            return _thumbnail(read_image(medium.place))
        if medium.kind == "video":
            stills = read_video(medium.place, _STILLS).frames
            return f"<div class='stills'>{''.join(_thumbnail(Image.fromarray(each)) for each in stills)}</div>"
    except BadRow:
        return "<span class='missing'>not shown</span>"
    return "<span class='missing'>a sound</span>"


def _thumbnail(small: Any) -> str:
    small.thumbnail(_THUMBNAIL)
    buffer = BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' alt='' width='{small.width}' height='{small.height}'>"
