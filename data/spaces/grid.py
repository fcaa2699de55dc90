"""Pictures of images: a grid, and titled rows that share noise and labels."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fewstep.data.arrays.pixels import check_images

SEPARATION = 1  # pixels between neighbours, before a grid is enlarged
SEPARATOR = 128  # grey, visible beside black and white borders
SMALLEST_SIDE = 32  # pixels; smaller images, such as 8x8 digits, are enlarged

CAPTIONED_SIDE = 64  # pixels; images below it are enlarged, to have room for a caption
CAPTION_SIZE, CAPTION_HEIGHT = 10, 12  # pixels, of a line
GAP = 4  # pixels around an image with a caption
TITLE_SIZE = 15  # pixels; still legible on a page that shrinks the picture a little
TITLE_HEIGHT = 24
MARGIN = 8
# Dark, so that the picture does not glare on a dark page. Images stand out from it on any page.
PAPER, INK = (34, 34, 34), (236, 236, 236)


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """A grid of images, row by row, one grey pixel apart: uint8 [H', W', C].

    images: uint8 [N, H, W, C]. H' = rows (H + 1) - 1 and W' = columns (W + 1) - 1. Free places in
    the last row are grey. Raises ValueError if N or columns is below 1.
    """
    check_images(images)
    if columns < 1 or not len(images):
        raise ValueError(
            f"a grid of {len(images)} images in {columns} columns is empty; give 1 or more of each"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    _, height, width, channels = images.shape
    cell = (height + SEPARATION, width + SEPARATION)
    grid = np.full((rows * columns, *cell, channels), SEPARATOR, np.uint8)
    grid[: len(images), :height, :width] = images
    grid = grid.reshape(rows, columns, *cell, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * cell[0], columns * cell[1], channels)
    return grid[:-SEPARATION, :-SEPARATION]


def comparison(rows: Mapping[str, np.ndarray]) -> Image.Image:
    """A row of images under each title.

    rows: title -> uint8 [N, H, W, C], with one H, W, C, in the order to show. If column i has the
    same noise and label in each row, it shows what the number of steps changes.
    Raises ValueError if there is no row or the images differ in shape.
    """
    if not rows:
        raise ValueError("rows is empty; a comparison needs at least one")
    shapes = {title: images.shape[1:] for title, images in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"rows differ in shape: {shapes}; give each row images of one shape")
    return stack_with_titles(
        list(rows), [enlarged_grid(images, len(images)) for images in rows.values()]
    )


def enlarged_grid(images: np.ndarray, columns: int, scale: int | None = None) -> Image.Image:
    """A grid whose pixels are enlarged to blocks of scale x scale.

    images: uint8 [N, H, W, C], C 1 or 3. scale: by default the smallest that makes the shorter side
    of an image at least 32 pixels. Raises ValueError for a scale below 1 or another C.
    """
    grid = image_grid(images, columns)
    if scale is None:
        scale = -(-SMALLEST_SIDE // min(images.shape[1:3]))
    if scale < 1:
        raise ValueError(f"scale = {scale}; it must be at least 1")
    if grid.shape[-1] not in (1, 3):
        raise ValueError(f"images have {grid.shape[-1]} channels; a PNG is made of 1 or 3")
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid)


def grid_picture(images: np.ndarray, columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """A grid of images, each above its caption if there are captions.

    images: uint8 [N, H, W, C]. captions: N texts of as many lines; a line that is wider than its
    image is cut.
    """
    if not captions:
        return enlarged_grid(images, columns)
    scale = -(-CAPTIONED_SIDE // min(images.shape[1:3]))
    cells = [enlarged_grid(image[np.newaxis], 1, scale) for image in images]
    columns = min(columns, len(cells))
    width, height = cells[0].size
    below = CAPTION_HEIGHT * len(captions[0].split("\n"))
    right, down = width + GAP, height + below + GAP
    size = (columns * right + GAP, -(-len(cells) // columns) * down + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        x, y = GAP + place % columns * right, GAP + place // columns * down
        canvas.paste(cell, (x, y))
        for line, text in enumerate(caption.split("\n")):
            middle = (x + width // 2, y + height + line * CAPTION_HEIGHT + CAPTION_HEIGHT // 2)
            text, font = cut_text(text, width), font_of(CAPTION_SIZE)
            draw.text(middle, text, fill=INK, font=font, anchor="mm")
    return canvas


def cut_text(text: str, width: int) -> str:
    """The beginning of a caption that is as wide as an image, in pixels."""
    font, kept = font_of(CAPTION_SIZE), text
    while kept and font.getlength(f"{kept}…" if kept != text else text) > width:
        kept = kept[:-1]
    return text if kept == text else f"{kept}…"


def stack_with_titles(titles: Sequence[str], strips: Sequence[Image.Image]) -> Image.Image:
    """Strips of one height, one above the other, each below its title."""
    font = font_of(TITLE_SIZE)
    widths = [int(font.getlength(title)) + 1 for title in titles]
    width = max(*widths, *(strip.width for strip in strips))
    pitch = TITLE_HEIGHT + strips[0].height
    size = (width + 2 * MARGIN, len(strips) * pitch + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for row, (title, image) in enumerate(zip(titles, strips, strict=True)):
        middle = row * pitch + TITLE_HEIGHT // 2 + 1
        draw.text((MARGIN, middle), title, fill=INK, font=font, anchor="lm")
        canvas.paste(image, (MARGIN, row * pitch + TITLE_HEIGHT))
    return canvas


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings: the same on every machine, and with accents."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
