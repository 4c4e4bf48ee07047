"""Semantic data sets by name of their metadata, for MMSegmentation."""

from typing import Any

from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import DATASETS


@DATASETS.register_module(name='SemanticDataset')
def build_semantic_dataset(metadata: str, **settings: Any) -> Any:
    """MMSegmentation's ``BaseSegDataset`` with classes, colors and ignored label of ``metadata``.

    MMSegmentation has a class for each of its data sets; Mapillary's takes the label "Unlabeled"
    for a class.

    Args:
        metadata: a name of ``mmseg_m2f.metadata``.
        settings: the other keys of ``BaseSegDataset``.

    Raises:
        ValueError: the name is not known.
        ImportError: MMSegmentation is not installed.
    """
    known = load_metadata(metadata)
    try:
        from mmseg.datasets import BaseSegDataset
    except ImportError as error:
        raise ImportError(
            'mmseg_m2f.SemanticDataset is a data set of MMSegmentation: install '
            'onedl-mmsegmentation (onedl stack) or mmsegmentation (upstream)'
        ) from error
    metainfo = {
        'classes': known.classes,
        'palette': [list(color) for color in known.palette],
        **settings.pop('metainfo', {}),
    }
    return BaseSegDataset(metainfo=metainfo, **{'ignore_index': known.ignore_index, **settings})
