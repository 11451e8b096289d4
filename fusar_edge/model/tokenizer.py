"""Qwen2.5's byte-level BPE from its rank file, whole or as a smaller vocabulary closed under merges.

    python -m fusar_edge.model.tokenizer qwen.tiktoken export/fusar-tiny/tokenizer.json

The rank file (151,643 ranks, Apache-2.0) ships in PyPI's `dashscope` wheel. A token is kept only with the two tokens it
is merged from, so every text still encodes, and decodes to itself; text outside the corpus takes more tokens.
"""

from __future__ import annotations

import base64
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# Qwen2TokenizerFast's pre-tokenizer.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Ranks = dict[bytes, int]


def read_ranks(path: Path) -> Ranks:
    """A `.tiktoken` file: base64 token and rank on each line."""
    rows = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def merged_from(token: bytes, ranks: Ranks) -> tuple[bytes, bytes]:
    """The two tokens that BPE joins last to make `token`."""
    parts = [bytes([b]) for b in token]
    limit = ranks[token]
    while len(parts) > 2:
        candidates = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, index = min(candidates)
        if rank >= limit:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    if len(parts) != 2:
        raise ValueError(f"{token!r} is not made by a merge of two tokens of lower rank")
    return parts[0], parts[1]


def closed_subset(ranks: Ranks, first: int, wanted: Iterable[bytes]) -> Ranks:
    """The first ranks, the wanted tokens and all they are merged from; ranks renumbered from 0 in the same order."""
    keep = {token for token, rank in ranks.items() if rank < first} | {bytes([b]) for b in range(256)}
    stack = list(wanted)
    while stack:
        token = stack.pop()
        if token not in keep:
            keep.add(token)
            stack.extend(merged_from(token, ranks))
    return {token: index for index, token in enumerate(sorted(keep, key=ranks.__getitem__))}


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def tokenizer_from_ranks(ranks: Ranks, special: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """A `tokenizers.Tokenizer` like Qwen2TokenizerFast; the special tokens follow the ranks."""
    characters = _byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[b] for b in token)

    by_rank = sorted(ranks, key=ranks.__getitem__)
    merges = [tuple(map(text, merged_from(t, ranks))) for t in by_rank if len(t) > 1]
    vocabulary = {text(t): ranks[t] for t in by_rank}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def corpus_tokens(tokenizer: Tokenizer, ranks: Ranks, texts: Iterable[str]) -> set[bytes]:
    """Tokens that the whole vocabulary needs for the texts."""
    by_id = {rank: token for token, rank in ranks.items()}
    return {by_id[i] for text in texts for i in tokenizer.encode(text).ids if i in by_id}


def _sar_corpus() -> list[str]:
    """Prompts, answers and the words of SAR captions."""
    from fusar_edge.data import tasks

    prompts = [tasks.caption_prompt(True), tasks.caption_prompt(False), tasks.classify_prompt((1, 2, 3, 4))]
    prompts += [f(label) for f in (tasks.count_prompt, tasks.grid_prompt, tasks.detect_prompt) for label in _LABELS]
    answers = [
        '[{"bbox_2d": [0, 1, 2, 3], "label": "ship"}, {"bbox_2d": [4, 5, 6, 7], "label": "ship"}]',
        "None",
        "1, 2, 3",
    ]
    chat = "system\nYou are a helpful assistant.\nuser\nassistant\n"
    words = [form for word in _WORDS.split() for form in (word, " " + word, " " + word.capitalize(), word.capitalize())]
    return [*prompts, *answers, chat, *_LABELS, *words, *(f" {label}" for label in _LABELS)]


_LABELS = (
    "ship", "plane", "vehicle", "aircraft", "tank", "bridge", "harbour", "2S1", "BRDM_2", "BTR_60", "D7", "T62",
    "ZIL131", "ZSU_23_4", "A220", "A320", "A330", "ARJ21", "Boeing737", "Boeing787",
)  # fmt: skip

_WORDS = """
SAR radar image scene simulated satellite speckle backscatter bright dark grey target targets ship ships vessel vessels
plane planes aircraft vehicle terrain functionality distribution layout boundary buildings roads water sea ocean
open coast coastal coastline shore shoreline land island river lake estuary bay harbour harbor port quay pier dock
breakwater canal bridge wetland marsh mudflat beach sand dune bare soil rock desert hill mountain valley plain flat
forest woodland tree trees shrub grass grassland pasture meadow crop crops cropland farmland field fields orchard paddy
urban suburban city town village residential industrial commercial settlement block blocks street streets road roads
highway railway runway airport apron terminal tank tanks storage warehouse container containers crane yard building
house houses factory tower towers dense sparse scattered clustered regular irregular uniform mixed patchwork grid linear
parallel straight curved winding sharp smooth rough calm choppy wind waves swell wake wakes anchored moored moving
alongside near along across between around within beside centre center middle upper lower left right top bottom north
south east west edge corner side half third quarter most mostly some few many several none no one two three four five
six seven eight nine ten eleven twelve visible absent present likely unknown covers covered contains occupies separates
meets runs spread arranged rows lines network large small long narrow wide single the a an and or with without of in on
at by from to is are this that there it its for as
"""


def main(source: str, out: str, first: str = "4096") -> None:
    """Write `out` with the first ranks and everything that the SAR corpus needs."""
    ranks = read_ranks(Path(source))
    whole = tokenizer_from_ranks(ranks)
    subset = closed_subset(ranks, int(first), corpus_tokens(whole, ranks, _sar_corpus()))
    small = tokenizer_from_ranks(subset)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    small.save(out)
    used = [len(t.encode(x).ids) for t in (whole, small) for x in ["\n".join(_sar_corpus())]]
    print(json.dumps({"out": out, "vocabulary": small.get_vocab_size(), "corpus_tokens_whole_small": used}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
