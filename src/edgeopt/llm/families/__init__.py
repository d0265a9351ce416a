"""Model families: how a Hugging Face folder's tensors and configuration become GGUF's.

One file a family. To add one: write ``families/NAME.py`` with a :class:`~.base.Family`, and add
its line to ``FAMILIES``.
"""
