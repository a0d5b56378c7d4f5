"""What an operator calls a defect, as vectors: sentences by kind, text encoders, and the table a bundle carries."""

from adclick_edge.words.encoder import TextEncoder, open_encoder
from adclick_edge.words.table import PromptTable, shipped_prompts
from adclick_edge.words.templates import known_vocabulary, sentences

__all__ = ["PromptTable", "TextEncoder", "known_vocabulary", "open_encoder", "sentences", "shipped_prompts"]
