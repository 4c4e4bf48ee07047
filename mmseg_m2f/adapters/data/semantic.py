"""MMSegmentation data sets by the name of their metadata."""

from typing import Any

from mmseg_m2f.metadata import load_metadata
from mmseg_m2f.registry import DATASETS


@DATASETS.register_module(name='SemanticDataset')
def build_semantic_dataset(metadata: str, **settings: Any) -> Any:
    """Build MMSegmentation's ``BaseSegDataset`` with the classes and ignored label of ``metadata``.

    MMSegmentation's own class for Mapillary counts the label "Unlabeled" as a class.

    Args:
        metadata: a name of ``mmseg_m2f.metadata``.
        settings: the other arguments of ``BaseSegDataset``. They override the metadata.

    Raises:
        ImportError: MMSegmentation cannot be imported.
    """
    try:
        from mmseg.datasets import BaseSegDataset
    except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
        raise ImportError(
            f'SemanticDataset needs MMSegmentation, which cannot be imported ({error}): pip '
            'install onedl-mmsegmentation (onedl stack) or mmsegmentation (upstream).'
        ) from error

    known = load_metadata(metadata)
    metainfo = {
        'classes': known.classes,
        'palette': [list(color) for color in known.palette],
        **settings.pop('metainfo', {}),
    }
    return BaseSegDataset(metainfo=metainfo, **{'ignore_index': known.ignore_index, **settings})
