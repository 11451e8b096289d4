"""The network in PyTorch: Qwen2.5-VL with TLM, its tokenizer and its checkpoints (workshop)."""
