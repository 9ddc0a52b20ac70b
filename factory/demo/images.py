"""Questions about simple shapes. Their images are drawn when the rows are read, and are part of them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

SIDE = 128  # pixels
COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 119, 180),
    "green": (44, 140, 44),
    "yellow": (240, 200, 20),
    "purple": (128, 70, 180),
    "orange": (250, 130, 20),
}
BACKGROUND = (245, 245, 245)
SHAPES = ("circle", "square", "triangle", "star")
NUMBERS = {2: "two", 3: "three", 4: "four"}
CORNERS = {
    "top left": (36, 36),
    "top right": (92, 36),
    "bottom left": (36, 92),
    "bottom right": (92, 92),
}
# the middles and the half width of so many shapes in one picture, in pixels
PLACES = {
    2: ([(36, 64), (92, 64)], 20),
    3: ([(24, 64), (64, 64), (104, 64)], 16),
    4: (list(CORNERS.values()), 20),
}
Turn = tuple[str, str]  # a question and its answer


@dataclass(frozen=True, slots=True)
class Drawn:
    shape: str
    colour: str
    middle: tuple[int, int]
    half: int  # of its width


def rows() -> Iterator[dict[str, Any]]:
    """52 rows {messages, images}: single shapes, several of one kind, two side by side, and two pictures at once.

    Images are as the hub keeps them, {bytes, path}: which rows are held out goes by what a row says, so that a path of
    this machine's would make it differ from another's.
    """
    for pictures, turns in chain(_single(), _several(), _side_by_side(), _two_pictures()):
        images = [{"bytes": _png(shapes), "path": None} for shapes in pictures]
        messages = []
        for number, (question, answer) in enumerate(turns):
            marks = "<image>" * len(images) if number == 0 else ""
            messages += [{"role": "user", "content": marks + question}, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "images": images}


def _single() -> Iterator[tuple[list[tuple[Drawn, ...]], list[Turn]]]:
    for number, (shape, colour) in enumerate((shape, colour) for shape in SHAPES for colour in COLOURS):
        corner = list(CORNERS)[(number + number // 6) % 4]
        asked: list[list[Turn]] = [
            [("What shape is this?", f"It is {_a(shape)}.")],
            [(f"What colour is the {shape}?", f"The {shape} is {colour}.")],
            [(f"Where is the {shape}?", f"It is in the {corner} corner.")],
            [
                ("Describe the picture in one sentence.", f"It shows {_a(colour)} {shape} in the {corner} corner."),
                ("Is there anything else in it?", f"No, the {shape} stands alone on a light background."),
            ],
        ]
        yield [(Drawn(shape, colour, CORNERS[corner], 24),)], asked[number % 4]


def _several() -> Iterator[tuple[list[tuple[Drawn, ...]], list[Turn]]]:
    colours = list(COLOURS)
    for number, (shape, count) in enumerate((shape, count) for shape in SHAPES for count in PLACES):
        middles, half = PLACES[count]
        colour = colours[number % len(colours)]
        picture = tuple(Drawn(shape, colour, middle, half) for middle in middles)
        yield (
            [picture],
            [(f"How many {shape}s are there?", f"There are {NUMBERS[count]} {shape}s, and all of them are {colour}.")],
        )


def _side_by_side() -> Iterator[tuple[list[tuple[Drawn, ...]], list[Turn]]]:
    colours = list(COLOURS)
    for number in range(12):
        left, right = SHAPES[number % 4], SHAPES[(number + 1 + number // 4) % 4]
        first, second = colours[number % 6], colours[(number + 1 + number // 6) % 6]
        half, other = (24, 12) if number % 2 else (12, 24)
        picture = (Drawn(left, first, (36, 64), half), Drawn(right, second, (92, 64), other))
        asked: list[Turn] = [
            (f"What is to the right of the {left}?", f"To its right is {_a(second)} {right}."),
            (f"Which is larger, the {left} or the {right}?", f"The {left if half > other else right} is larger."),
            ("Which two colours do you see?", f"{first.capitalize()} on the left and {second} on the right."),
        ]
        yield [picture], [asked[number % 3]]


def _two_pictures() -> Iterator[tuple[list[tuple[Drawn, ...]], list[Turn]]]:
    colours = list(COLOURS)
    for number, shape in enumerate(SHAPES):
        other, colour = SHAPES[(number + 1) % 4], colours[number]
        first = (Drawn(shape, colour, (64, 64), 32),)
        second = (Drawn(other, colour, (64, 64), 32),)
        turn = (
            "What do the two pictures have in common, and what differs?",
            f"Both shapes are {colour}. The first is {_a(shape)}, the second {_a(other)}.",
        )
        yield [first, second], [turn]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _png(shapes: tuple[Drawn, ...]) -> bytes:
    file = io.BytesIO()
    _picture(shapes).save(file, format="png")
    return file.getvalue()


def _picture(shapes: tuple[Drawn, ...]) -> Any:
    from PIL import Image, ImageDraw  # here, as a plan that only names the set needs no pictures

    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for each in shapes:
        colour, (x, y), half = COLOURS[each.colour], each.middle, each.half
        if each.shape == "circle":
            draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)
        elif each.shape == "square":
            draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)
        else:
            draw.polygon([(x + dx * half, y + dy * half) for dx, dy in _CORNERS_OF[each.shape]], fill=colour)
    return image


# from the middle, in half widths
_CORNERS_OF = {
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "star": [
        (0, -1),
        (0.26, -0.36),
        (0.95, -0.31),
        (0.43, 0.14),
        (0.59, 0.81),
        (0, 0.46),
        (-0.59, 0.81),
        (-0.43, 0.14),
        (-0.95, -0.31),
        (-0.26, -0.36),
    ],
}
