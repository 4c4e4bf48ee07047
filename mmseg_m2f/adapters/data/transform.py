"""The base of our transforms."""

from mmcv.transforms import BaseTransform


class Transform(BaseTransform):
    """A transform that is printed with its attributes, in the order in which they were set."""

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'
