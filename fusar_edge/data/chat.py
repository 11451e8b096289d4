"""Qwen2.5-VL's chat form around one image and one question."""

BEFORE_IMAGE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
IMAGE_TOKEN = "<|image_pad|>"
AFTER_IMAGE = "<|vision_end|>"
AFTER_QUESTION = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"


def prompt_text(question: str, visual_tokens: int) -> str:
    """Everything before the answer."""
    return f"{BEFORE_IMAGE}{IMAGE_TOKEN * visual_tokens}{AFTER_IMAGE}{question}{AFTER_QUESTION}"
