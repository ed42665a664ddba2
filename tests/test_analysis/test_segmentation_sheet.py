import numpy as np
import pytest

from mmgroupnet.analysis.segmentation_sheet import Row, draw_segmentation_sheet

PALETTE = [[200, 0, 0], [0, 0, 200]]


def make_row(**maps: int) -> Row:
    """A white picture of 20x40 pixels and maps, each filled with one class."""
    return Row(
        np.full((20, 40, 3), 255, dtype=np.uint8), {name: np.full((20, 40), value) for name, value in maps.items()}
    )


def test_columns_show_the_classes_in_their_colours():
    rows = [make_row(truth=0, seen=1), make_row(truth=255, seen=0)]
    sheet = np.asarray(draw_segmentation_sheet(rows, ('red', 'blue'), PALETTE, 'Title', picture_width=80))
    # Pictures of 80x40 pixels with 8 between them.
    assert sheet.shape[1] == 3 * 88 + 8
    top = sheet.shape[0] - 2 * 48
    middle = [[sheet[top + 20 + 48 * row, 8 + 40 + 88 * column].tolist() for column in range(3)] for row in range(2)]
    white, red, blue = [255] * 3, [219, 89, 89], [89, 89, 219]  # 0.35 * 255 + 0.65 * colour
    assert middle == [[white, red, blue], [white, white, red]]
    assert [200, 0, 0] in sheet[:top].reshape(-1, 3).tolist()  # legend


def test_a_long_legend_has_several_lines():
    names = [f'class number {index}' for index in range(12)]
    palette = [[20 * index, 0, 0] for index in range(12)]
    short = draw_segmentation_sheet([make_row(truth=0)], names[:2], palette[:2], 'Title')
    long = draw_segmentation_sheet([make_row(truth=0)], names, palette, 'Title')
    assert long.width == short.width and long.height > short.height


@pytest.mark.parametrize('rows', [[], [make_row(truth=0), make_row(seen=0)]])
def test_rows_must_have_the_same_columns(rows):
    with pytest.raises(ValueError, match=f'rows has {len(rows)} entries: .* the same columns'):
        draw_segmentation_sheet(rows, ('red', 'blue'), PALETTE, 'Title')
