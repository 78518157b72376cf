"""The policy as files: finding or fetching its folder, its tokenizer, its module, and a tiny one for tests.

Nothing heavy is imported here; `load`, `tiny` and `smollm2` import torch and transformers, `tokenizer` transformers.
"""
