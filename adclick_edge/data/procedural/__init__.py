"""Procedural pictures: textures and scenes drawn from random numbers alone, for tests and for pretraining."""

__all__: list[str] = []
