"""Which classes are things: of a head, and of a data set."""

import numpy as np
import pytest

from mmseg_m2f.adapters.metrics.sample_fields import is_thing
from mmseg_m2f.adapters.things import checked_thing_ids, thing_ids_of

NAMES = {'classes': ('road', 'car', 'sky', 'person')}


@pytest.mark.parametrize(
    ('meta', 'things'),
    [
        ({**NAMES, 'thing_ids': (3, 1)}, [3, 1]),
        ({**NAMES, 'thing_classes': ['person', 'car']}, [1, 3]),
        # mmdet's COCO data set tells the names of all classes, whichever are selected.
        ({**NAMES, 'thing_classes': ['cow', 'car'], 'stuff_classes': NAMES['classes']}, [1]),
        ({**NAMES, 'thing_classes': ['cow', 'car'], 'stuff_classes': ['road']}, None),
        ({**NAMES, 'thing_classes': ['cow', 'car']}, None),
        (NAMES, None),
    ],
)
def test_things_of_a_data_set(meta, things):
    assert thing_ids_of(meta) == things
    of_metrics = is_thing(meta)
    assert things is None if of_metrics is None else set(np.flatnonzero(of_metrics)) == set(things)


def test_thing_ids_of_a_head():
    assert checked_thing_ids(np.array([2, 0]), 3) == [0, 2]
    assert checked_thing_ids(None, 2) == [0, 1]
    for wrong in ([True], [0.0], ['a'], [[0]], [1, 1], [3]):
        with pytest.raises(ValueError, match='different class indices from 0 to 2'):
            checked_thing_ids(wrong, 3)
