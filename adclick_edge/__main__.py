"""``python -m adclick_edge VERB``, the same as ``adclick VERB``."""

from adclick_edge.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
