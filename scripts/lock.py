"""Print the constraints of a stack: the version of everything installed beside its torch.

    .venv/bin/python scripts/lock.py > requirements/constraints-onedl.txt

Python 3.10 is left to pip: a part of the pinned releases needs a newer one.
"""

import importlib.metadata
import re

# torch is what TORCH says; pip and this package are installed by the set-up itself.
LEFT_OUT = {'torch', 'torchvision', 'triton', 'pip', 'mmseg-m2f'}


def main() -> None:
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r'[-_.]+', '-', distribution.metadata['Name']).lower()
        if name not in LEFT_OUT and not name.startswith('nvidia-'):
            versions[name] = distribution.version
    print('# Written by scripts/lock.py; what the tests ran with.')
    for name, version in sorted(versions.items()):
        print(f"{name}=={version}; python_version >= '3.11'")


if __name__ == '__main__':
    main()
