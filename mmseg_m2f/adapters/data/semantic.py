"""MMSegmentation data sets by the name of their metadata."""

from typing import Any

from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import DATASETS


@DATASETS.register_module(name='SemanticDataset')
def build_semantic_dataset(metadata: str, **settings: Any) -> Any:
    """Build MMSegmentation's ``BaseSegDataset`` with the classes and ignored label of ``metadata``.

    MMSegmentation has a class of its own for each of its data sets. The one for Mapillary counts
    the label "Unlabeled" as a class.

    Args:
        metadata: a name of ``mmseg_m2f.metadata``.
        settings: the other arguments of ``BaseSegDataset``. They override the metadata.

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
