"""Instance AP as Cityscapes defines it, computed by the package cityscapesScripts.

The package reads files: per image a text file that lists a mask file, a label id and a score for
each instance. It keeps its settings in a global object; this module works on a copy.
"""

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def truth_file(gt_dir: str | Path, img_path: str | Path) -> Path:
    """Return ``GT_DIR/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png`` of an image.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    name = core_name(img_path)
    path = Path(gt_dir, name.split('_')[0], f'{name}_gtFine_instanceIds.png')
    if not path.is_file():
        raise FileNotFoundError(
            f'the ground truth of {img_path} is not at {path}: gt_dir must be a folder of gtFine, '
            'such as data/cityscapes/gtFine/val, with a folder for each city'
        )
    return path


def core_name(img_path: str | Path) -> str:
    """Return ``<city>_<sequence>_<frame>``, with which the names of all files of an image start.

    Raises:
        ValueError: the image's name does not have these parts.
    """
    parts = Path(img_path).stem.split('_')
    if len(parts) < 3:
        raise ValueError(
            f'{img_path} is not named as in Cityscapes: <city>_<sequence>_<frame>_leftImg8bit.png'
        )
    return '_'.join(parts[:3])


def write_instances(
    folder: Path, img_path: str, masks: np.ndarray, label_ids: np.ndarray, scores: np.ndarray
) -> Path:
    """Write the instances of one image in the benchmark's format; return the list file.

    All files lie in ``folder`` and are named after the image. A mask of ``masks (N, H, W)`` bool
    without a pixel is left out. ``label_ids (N,)`` are those of Cityscapes (car: 26).
    """
    name = core_name(img_path)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in np.flatnonzero(masks.any((1, 2))):
        file = f'{name}_{index}_{label_ids[index]}.png'
        # Fast compression: there are many files, which are read once or sent in an archive.
        Image.fromarray(masks[index]).save(folder / file, compress_level=1)
        lines.append(f'{file} {label_ids[index]} {float(scores[index])!r}\n')
    path = folder / f'{name}_pred.txt'
    path.write_text(''.join(lines))
    return path


def match_image(truth: Path, predicted: Path) -> dict[str, Any]:
    """Compute the overlaps of the instances of one image, for `cityscapes_scores`."""
    evaluator = import_evaluator()
    with warnings.catch_warnings():
        # The package calls a function that NumPy 2 renamed.
        warnings.simplefilter('ignore', DeprecationWarning)
        instances = evaluator.instances2dict([str(truth)], False)
        return evaluator.matchGtWithPreds(
            [str(predicted)], [str(truth)], instances, _settings(evaluator, predicted.parent)
        )


def cityscapes_scores(
    matches: Mapping[str, Any],
) -> tuple[tuple[float, float], dict[str, tuple[float, float]]]:
    """Compute AP and AP50 in [0, 1] from the joined results of `match_image`.

    Return the means over the classes that occur, and both per class name: NaN if it does not occur.
    """
    evaluator = import_evaluator()
    settings = _settings(evaluator, Path())
    with warnings.catch_warnings():
        # The mean over no class is NaN; it becomes 0 below.
        warnings.simplefilter('ignore', RuntimeWarning)
        averages = evaluator.computeAverages(evaluator.evaluateMatches(matches, settings), settings)
    per_class = {
        name: (float(of_class['ap']), float(of_class['ap50%']))
        for name, of_class in averages['classes'].items()
    }
    ap, ap50 = np.nan_to_num([averages['allAp'], averages['allAp50%']]).tolist()
    return (ap, ap50), per_class


def import_evaluator() -> Any:
    """Import the instance evaluation of cityscapesScripts.

    Raises:
        ImportError: the package is not installed; the message has the command.
    """
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling
    except ImportError as error:
        raise ImportError(
            f"Cityscapes' instance AP is computed by cityscapesScripts, which cannot be imported "
            f'({error}): pip install cityscapesscripts, or leave CityscapesInstanceMetric out'
        ) from error
    return evalInstanceLevelSemanticLabeling


def _settings(evaluator: Any, folder: Path) -> Any:
    settings = copy.copy(evaluator.args)
    settings.quiet = True
    settings.predictionPath = os.path.abspath(folder)
    evaluator.setInstanceLabels(settings)
    return settings
