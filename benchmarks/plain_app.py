"""The plain alternative: FastAPI around sentence-transformers, as a tutorial would write it.

`python plain_app.py MODEL PORT THREADS [DEVICE [BATCH]]`, with an interpreter that has sentence-transformers and
FastAPI. On DEVICE cuda in fp16. BATCH: texts that are computed at once.
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()


class Ask(BaseModel):
    input: list[str]
    model: str = ""
    encoding_format: str = "float"


@app.post("/v1/embeddings")
def embeddings(ask: Ask) -> dict:
    vectors = model.encode(
        ask.input, normalize_embeddings=True, batch_size=batch, show_progress_bar=False
    )
    data = [
        {"object": "embedding", "index": i, "embedding": vector.tolist()}
        for i, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": ask.model}


@app.get("/health")
def health() -> dict:
    return {}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    device = sys.argv[4] if len(sys.argv) > 4 else "cpu"
    batch = int(sys.argv[5]) if len(sys.argv) > 5 else 32
    model = SentenceTransformer(sys.argv[1], device=device)
    if device == "cuda":
        model.half()
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
