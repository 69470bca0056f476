"""Other ways to the same embeddings: servers of one artifact, and engines in process.

    python -m benchmarks.peers Ti/16 --images PHOTOGRAPHS
    python -m benchmarks.peers.fastapi_server ARTIFACT --port 3001

Each server takes a JPEG's bytes on `POST /embed` and answers the .npy file that `sovit serve` does: float32 [1, D], of
length 1. Each is set up as its own documentation has it for this job, with one process of one ONNX Runtime thread for
each core; its module says how. `pip install 'sovit[cpu,peers]'` brings them.
"""
