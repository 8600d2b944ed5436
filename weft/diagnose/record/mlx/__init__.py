"""Scripts that use MLX."""

from weft.diagnose.record.mlx.tap import install

__all__ = ["install"]
