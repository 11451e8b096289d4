"""Other ways to run the same weights on the same tiles, for `bench --against`.

Each is made without arguments and keeps fusar_edge.bench.peer's Protocol; beside it, `compared` says what of it may be
set beside ours: `tile` (all of a tile) or `decode` (tokens per second alone).
"""

PEERS = {
    "ours-grammar": "fusar_edge.bench.peer:OursWithGrammar",
    "hf-eager": "fusar_edge.bench.peers.hugging_face:EagerPeer",
    "hf-compile": "fusar_edge.bench.peers.hugging_face:CompiledPeer",
    "ort-loop": "fusar_edge.bench.peers.ort_loop:OrtLoopPeer",
    "ort-loop-int8": "fusar_edge.bench.peers.ort_loop:OrtLoopInt8Peer",
    "llama.cpp": "fusar_edge.bench.peers.llama:LlamaPeer",
}
"""Name -> module:class, imported on use."""
