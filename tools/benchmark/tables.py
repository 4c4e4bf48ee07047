"""The tables of the documents, made from the CSV files in docs/benchmarks.

    python -m tools.benchmark.tables

writes each between its marks ``<!-- table: NAME -->`` and ``<!-- end -->`` anew.
"""

import csv
import re
from collections.abc import Callable
from typing import NamedTuple

from tools.benchmark import harness

FOLDER = harness.ROOT / 'docs/benchmarks'
DOCUMENTS = (harness.ROOT / 'README.md', FOLDER / 'README.md')
MARK = re.compile(r'(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)', re.DOTALL)


class Column(NamedTuple):
    """A case, the beginning of its file's name, its peer, and who else is named in the README."""

    title: str
    file: str
    case: str
    peer: str
    others: tuple[str, ...] = ()


SEMANTIC, PANOPTIC = 'image to label map', 'image to panoptic segments and instances'
COLUMNS = [
    Column(f'{SEMANTIC}, R50, 512 x 512', 'inference-r50-512px', 'r50_512', 'mmseg', ('hf',)),
    Column(
        f'{PANOPTIC}, R50, 800 x 1333',
        'inference-r50-panoptic-800x1333',
        'panoptic_800x1333',
        'mmdet',
    ),
    Column(f'{SEMANTIC}, Swin-L, 640 x 640', 'inference-swin-l-640px', 'swin-l_640', 'mmseg'),
    Column(
        'training step, R50, 512 x 512, two images',
        'train-step-r50-512px-batch2',
        'r50_512',
        'mmseg',
        ('hf',),
    ),
]
NAMES = {'mmseg': 'MMSegmentation', 'mmdet': 'MMDetection', 'hf': 'Hugging Face'}
# What a row of the long table says, and the implementation that stands there.
ROWS = {
    'the peer': '{peer}',
    'the peer, freed memory kept (training: AdamW fused) as ours do': '{peer}-kept',
    'the peer, tuned': '{peer}-tuned',
    'the peer, compiled and tuned': '{peer}-compiled',
    'the peer in bfloat16, tuned': '{peer}-bf16',
    'the peer after `mmseg_m2f.accelerate`': '{peer}-accelerated',
    '**ours**': 'ours',
    'ours, no freed memory kept (training: nor AdamW fused)': 'ours-plain',
    'ours, channels last': 'ours-channels-last',
    'ours, norms fused': 'ours-fused',
    'ours, both': 'ours-tuned',
    'ours, compiled and tuned': 'ours-compiled',
    'ours in bfloat16, the pixel decoder too': 'ours-bf16-mixed',
    'ours in bfloat16 (training: the pixel decoder too)': 'ours-bf16',
    'ours, checkpointing activations': 'ours-checkpointed',
    'Hugging Face': 'hf',
    'Hugging Face, tuned': 'hf-tuned',
    'Hugging Face, compiled and tuned': 'hf-compiled',
    'Hugging Face in bfloat16, tuned': 'hf-bf16',
    'Hugging Face after `mmseg_m2f.accelerate`': 'hf-accelerated',
}

# What a row of the table of growth says, and its case.
GROWTH = {
    '1 target (256 x 256, 300 queries)': 'targets_1',
    '100 targets': 'targets_100',
    '200 targets': 'targets_200',
    '300 targets': 'targets_300',
    '256 x 256 (30 targets, 100 queries)': 'side_256',
    '512 x 512': 'side_512',
    '1024 x 1024': 'side_1024',
    '50 queries (256 x 256, 30 targets)': 'queries_50',
    '300 queries': 'queries_300',
}

Table = dict[tuple[str, str], dict[str, str]]


def read(file: str) -> Table:
    """The rows of the one file whose name begins so, by case and implementation."""
    [path] = FOLDER.glob(f'{file}_*.csv')
    with path.open() as lines:
        return {(row['case'], row['impl']): row for row in csv.DictReader(lines)}


def main() -> None:
    """Write all documents anew."""
    for path in DOCUMENTS:
        path.write_text(renewed(path.read_text()))


def renewed(text: str) -> str:
    """A document with the tables of today's files."""
    return MARK.sub(lambda found: f'{found[1]}{TABLES[found[2]]()}{found[3]}', text)


def short() -> str:
    """What a user asks first: how much faster, how much memory, how equal."""
    heads = 'ours', 'times as fast as', 'as that tuned', 'memory of the process', 'difference'
    lines = [f'| on two CPU cores | {" | ".join(heads)} |', '|---' + '|--:' * len(heads) + '|']
    for column in COLUMNS:
        table = read(column.file)
        ours = table[column.case, 'ours']
        peers = [column.peer, *column.others]
        faster = '; '.join(f'**{_times(table, column.case, p)}** {NAMES[p]}' for p in peers)
        tuned = '; '.join(_times(table, column.case, f'{p}-tuned') for p in peers)
        peak = float(ours['peak_mib']) / float(table[column.case, column.peer]['peak_mib'])
        lines.append(
            f'| {column.title} | {float(ours["median_s"]):.2f} s | {faster} | {tuned} | '
            f"{float(ours['peak_mib']):,.0f} MiB, {peak:.2f} of {NAMES[column.peer]}'s | "
            f'{_rounded(ours["max_abs_diff"])} |'
        )
    return '\n'.join(lines) + '\n'


def _times(table: Table, case: str, peer: str) -> str:
    if (case, peer) not in table:
        return ''
    return f'{float(table[case, peer]["median_s"]) / float(table[case, "ours"]["median_s"]):.2f}'


def long() -> str:
    """Time and memory above the model of the stock peer's, and the difference of the outputs."""
    heads = [f'{column.title} ({NAMES[column.peer]})' for column in COLUMNS]
    lines = [
        f'| time, memory above the model, difference | {" | ".join(heads)} |',
        '|---' + '|--:' * len(heads) + '|',
    ]
    tables = [read(column.file) for column in COLUMNS]
    for label, name in ROWS.items():
        cells = [_cell(*pair, name) for pair in zip(tables, COLUMNS, strict=True)]
        if any(cells):
            lines.append(f'| {label} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cell(table: Table, column: Column, name: str) -> str:
    name = name.format(peer=column.peer)
    if (column.case, name) not in table:
        return ''
    row, peer = table[column.case, name], table[column.case, column.peer]
    memory = float(row['above_model_mib']) / float(peer['above_model_mib'])
    difference = '' if name == column.peer else f', {_rounded(row["max_abs_diff"])}'
    return f'{float(row["ratio"]):.2f}, {memory:.2f}{difference}'


def growth() -> str:
    """Seconds and MiB above the model against one size at a time, and both of mmseg's."""
    heads = 'ours', 'Hugging Face', 'mmseg', "of mmseg's"
    lines = [f'| | {" | ".join(heads)} |', '|---' + '|--:' * len(heads) + '|']
    table = read('scaling')
    for label, case in GROWTH.items():
        rows = [table[case, name] for name in ('ours', 'hf', 'mmseg')]
        cells = [
            f'{float(row["median_s"]):.2f} ({float(row["above_model_mib"]):,.0f})' for row in rows
        ]
        memory = float(rows[0]['above_model_mib']) / float(rows[-1]['above_model_mib'])
        lines.append(
            f'| {label} | {" | ".join(cells)} | {float(rows[0]["ratio"]):.2f} ({memory:.2f}) |'
        )
    return '\n'.join(lines) + '\n'


def _rounded(difference: str) -> str:
    """To one digit, or to whole numbers."""
    value = float(difference)
    return f'{value:.1g}' if value < 9.5 else f'{value:.0f}'


TABLES: dict[str, Callable[[], str]] = {'short': short, 'long': long, 'growth': growth}


if __name__ == '__main__':
    main()
