"""Every setting of the service, with its story.

Set as environment variables with the prefix `MEXMA_` (`MEXMA_MAX_BATCH_TOKENS=8192`), or
built in code and handed to `create_app`. `docs/settings.md` is generated from this file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mexma.session import Engine
from service.logs import LogFormat

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "models" / "default"


# Batches that a GPU was measured with (benchmarks/results/gpu_nvidia-h100-80gb-hbm3_2026-11-26.md; others
# were not compared), and a queue as much longer: at its 2.7 million tokens a second a CPU's is empty in a
# tenth of a second.
GPU_DEFAULTS = {"max_batch_tokens": 16_384, "max_batch_items": 512, "max_queue_tokens": 4_194_304}


def _split(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _address(value: str | None) -> str | None:
    if value and not re.match("https?://[^/]", value):
        raise ValueError("expected an address with its scheme, such as 'http://collector:4318'")
    return value


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """The service's configuration; immutable once built."""

    model_config = SettingsConfigDict(
        env_prefix="MEXMA_", frozen=True, extra="forbid", populate_by_name=True
    )

    model: Path = Field(
        DEFAULT_MODEL,
        description="Directory of the artifact to serve, as written by mexma-export. Every file "
        "in it is verified against its manifest before it is loaded.",
    )
    further_models: Paths = Field(
        (),
        description="Directories of further artifacts to load beside it, separated by commas: for "
        "collections that are theirs, and to move a collection from one to the other "
        "(docs/migration.md). Each takes its memory, and all share the compute threads' cores.",
    )
    models_dir: Path | None = Field(
        None,
        description="Directory below which `POST /v1/models/reload` may name an artifact to serve "
        "instead. Unset: it can only load MEXMA_MODEL's directory again, with what lies there by "
        "then. What a reload chose is not remembered: the next start serves MEXMA_MODEL.",
    )
    reload_keep_s: float = Field(
        600.0,
        ge=0,
        description="Seconds that the model before a reload stays loaded, for `POST "
        "/v1/models/rollback`. It stays longer while collections are its own. Longer leaves more time "
        "to notice, and takes the memory of both models meanwhile.",
    )
    reload_trial_s: float = Field(
        60.0,
        ge=0,
        description="Seconds after a reload in which a test sentence is sent every second; if it "
        "fails, is late (5 s) or has another vector than at first, the model before answers again by "
        "itself. 0 trusts what was proved before.",
    )
    reload_max_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        description="How much smaller the share of 820 sentences that find their translation may be "
        "than by the model that serves; a reload that loses more is refused. Below 0.02 chance alone "
        "refuses some; 1 takes any model, such as one for fewer languages.",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where the model runs. With cuda, a machine on which CUDA does not start is "
        "refused at start; the service never falls back to the CPU by itself.",
    )
    engine: Engine = Field(
        "auto",
        description="What computes. auto takes on a CPU the first of this project's own that the "
        "processor has and is fast with: amx, avx512_bf16_vnni and avx512_bf16 (bf16, the second int8 too), "
        "avx512_vnni (int16 and int8), these four for compact artifacts, avx512 and avx2 (fp32); with "
        "MEXMA_DEVICE=cuda cuda (fp16, for fp16 and compact artifacts, from compute capability 8.0 on); and "
        "ONNX Runtime elsewhere. portable must be named. `/v1/models` and the log say which, and why. "
        "Naming one insists on it: a machine that cannot run it is refused at start.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Compute threads, for the model and for the index each; 0 means one per core "
        "this process may use. More than there are cores makes everything slower; fewer leaves "
        "room for other processes on the machine.",
    )
    data_dir: Path = Field(
        Path("data"),
        description="Where collections live. It needs a disk that honours fsync; two services "
        "cannot share it, and the second one to start is refused.",
    )
    index_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where collections above 50,000 documents are searched. auto: on the GPU where "
        "MEXMA_DEVICE is cuda and FAISS sees one (its extra `gpu` brings faiss-gpu), else on the CPU; "
        "the log says which. With cuda, a machine without is refused at start. On a GPU every document "
        "is compared with every query, from its memory.",
    )
    index_memory_mb: int = Field(
        4096,
        ge=0,
        description="Memory for the indexes of collections above 50,000 documents, all together: on a CPU "
        "about 110 bytes a document of 384 dimensions, on a GPU 768 of its own memory. A collection for "
        "which too little is left is searched exactly on the CPU, and the log says so. While an index is "
        "made anew it is there twice. The vectors themselves (1.5 kB at 384 dimensions) and the metadata "
        "are in memory too and not counted here.",
    )
    recall_check_every: int = Field(
        1000,
        ge=0,
        description="One in so many approximate searches is done exactly as well, after its answer, "
        "for `mexma_collection_recall`. Smaller notices a decline sooner and costs a full scan each "
        "time; 0 turns the gauge off.",
    )
    invariance_check_every: int = Field(
        1000,
        ge=0,
        description="One in so many batches has one of its texts computed once more, alone, for "
        "`mexma_batch_invariance`: whether a vector depends on what else is in its batch. Smaller "
        "notices sooner and costs the time of one text each time; 0 turns the gauge off.",
    )
    milvus_uri: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Where collections live instead, if set: the address of a Milvus server, such as "
        "http://milvus:19530. Several services may share one. MEXMA_DATA_DIR and the settings of "
        "the index and its recall then mean nothing; docs/milvus.md says what else differs. Needs "
        "the extra `milvus`.",
    )
    milvus_token: SecretStr = Field(
        SecretStr(""),
        description="What Milvus asks for: `user:password`, or an API key. It is never logged.",
    )
    milvus_database: str = Field(
        "",
        description="The database in Milvus, which must exist; empty is its default one. Services that "
        "shall not see each other's collections take one each.",
    )
    milvus_index: Literal["FLAT", "HNSW"] = Field(
        "FLAT",
        description="The vector index of collections that are created from now on. FLAT compares every "
        "vector that may be found, in Milvus's query nodes: exact, and slower with each document. HNSW "
        "is a graph, approximate: fast where FLAT is too slow, it misses some neighbours, and `exact` is "
        "refused where 16,384 documents or more match.",
    )
    milvus_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Time for one call of Milvus, repetitions included; then the request gets 503. Long "
        "enough for the slowest search, and no longer than clients wait.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Without API keys (`MEXMA_API_KEYS_FILE`), listen on "
        "other addresses than loopback only behind something that checks who is calling.",
    )
    port: int = Field(
        8080,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("MEXMA_PORT", "PORT"),
        description="Port to listen on; `PORT` is read too. 0 takes a free one and logs it.",
    )
    max_batch_tokens: int = Field(
        1024,
        ge=1,
        description="Tokens in one batch, padding included where the engine pads; with cuda 16384 unless "
        "set. Larger keeps a GPU busy; on a CPU it gains nothing and makes a short query wait longer "
        "behind a batch of long ones. A single longer text is always run, alone.",
    )
    max_batch_items: int = Field(
        64,
        ge=1,
        description="Texts in one batch, whatever their length; with cuda 512 unless set. It bounds "
        "how long a single text waits for the batch before it. Where it is less than the short texts that "
        "fill a batch, throughput suffers: with 32, requests of 64 sentences had 3 % less on two cores.",
    )
    bulk_batch_tokens: int = Field(
        0,
        ge=0,
        description="Tokens in one batch of bulk work while no interactive client is about, and texts in "
        "proportion; never fewer than `MEXMA_MAX_BATCH_TOKENS`. 0 measures that many, twice and four times "
        "as many (as long as a batch takes a tenth of a second) at the first start, for a second, and keeps "
        "what it found in MEXMA_DATA_DIR, by machine and artifact; without its tuning.json it does so again.",
    )
    max_queue_tokens: int = Field(
        262_144,
        ge=1,
        description="Tokens that may wait, with cuda 4194304 unless set; bulk work does not count against "
        "interactive requests, which go before it. Beyond it requests get 503 with Retry-After; a "
        "request that finds the queue empty is taken, however large. Larger hides overload as "
        "latency, smaller refuses bursts that would have been served in time.",
    )
    interactive_wait_s: float = Field(
        5.0,
        gt=0,
        description="Predicted wait beyond which interactive requests get 503 with Retry-After, those of "
        "clients who have little waiting last. Predicted from the tokens that go before and the engine's "
        "pace, and no bound: where the pace falls, what was taken waits longer. Every request, bulk work "
        "too, is refused so where its own deadline would pass first. "
        "Larger turns overload into waiting, smaller refuses bursts that would have been served soon.",
    )
    http_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes that speak HTTP and tokenise, beside one that has the engine and the "
        "collections; 0 does all of it in one process. One process answers some thousand single "
        "sentences a second, which keeps a CPU's engine busy and not a GPU's: there take as many as "
        "bring more, up to the cores that are free. Each needs about 100 MB.",
    )
    interactive_tokens: int = Field(
        256,
        ge=0,
        description="A request with more tokens than this is bulk work, which gives way to others, "
        "unless its header `x-lane` says what it is. Larger lets medium requests go first too, and "
        "makes small ones wait for them.",
    )
    client_header: str = Field(
        "",
        pattern=r"^[a-z0-9-]*$",
        description="Header, in lower case, that names the client; the engine is shared evenly "
        "between clients. Empty: a client is its address and its `authorization`. Behind a proxy all "
        "have one address: name a header here that the proxy sets, never one that clients can.",
    )
    cache_mb: int = Field(
        0,
        ge=0,
        description="Memory for vectors computed before, least recently used ones dropped; 0 keeps "
        "none. A vector of 384 dimensions takes 1.9 kB. It pays where the same texts come again: "
        "look at `mexma_spared_items_total`. Texts are not kept, only a hash of their tokens.",
    )
    max_request_items: int = Field(
        2048,
        ge=1,
        description="Texts, documents, queries, or sentences to mine (both lists together) in one request; "
        "more get 422.",
    )
    max_state_tokens: int = Field(
        8192,
        ge=1,
        description="Tokens in one request to `/embed_all` or `/v1/align`, after truncation; more get 422. "
        "Each token has a vector there, so this bounds the memory of an answer: with 384 dimensions 6 kB "
        "a token as numbers and JSON together. Four times as many are held at once by all such requests, "
        "twice by those of one client; beyond that they get 503 with Retry-After.",
    )
    max_search_hits: int = Field(
        100_000,
        ge=1,
        description="Hits one search may ask for: queries times `k`, times the collection's "
        "languages with `per_language`; more get 422. It bounds the memory of an answer.",
    )
    max_body_bytes: int = Field(
        16 * 2**20,
        ge=1,
        description="Size of a request body; more get 413 while it is still arriving. Bodies are "
        "held in memory, so this times the number of connections is what clients can make the "
        "service hold.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time in which a request body must have arrived; slower ones get 408. It "
        "bounds what a client that trickles bytes can hold open.",
    )
    header_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time in which a request's head must have arrived, and in which a new connection must "
        "have begun one; then it is closed. (After an answer a connection is kept for 75 s.) Shorter "
        "frees what idle clients hold sooner; too short cuts clients that connect before they have "
        "something to ask.",
    )
    write_timeout_s: float = Field(
        30.0,
        gt=0,
        description="A client that in this time takes less than 64 kB of an answer that waits for it is "
        "cut off. Answers are held in memory until they are taken: it bounds how long, and the slowest "
        "line that large answers get through.",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="Connections of each process that may be open. Beyond it those are closed that have "
        "waited longest for their client. An idle one takes about 10 kB, and a file each of those that "
        "the process may open, less 256 for its own.",
    )
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Time a request may wait for its vectors; then it gets 504 and leaves the "
        "queue. Set it no higher than the clients' own time-out, or work is done for nobody.",
    )
    engine_timeout_s: float = Field(
        30.0,
        gt=0,
        description="A batch that runs longer than this means that the engine is stuck: "
        "/health/ready turns off. Well above the time of the largest batch on a busy machine.",
    )
    canary_every_s: float = Field(
        10.0,
        ge=0,
        description="Seconds between test sentences: one that fails, is late (5 s) or gives another vector "
        "than at the start turns /health/ready off until one is right, and an engine that hangs or errs "
        "so is started anew. 0 sends none: ready then looks at the last batch only.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        description="Seconds between SIGTERM, which turns /health/ready off, and the refusal of new "
        "connections; as long as load balancers take to notice. Accepted requests have 30 s after that. "
        "Whatever stops the process must wait for both.",
    )
    auto_truncate: bool = Field(
        True,
        description="What happens to texts longer than the model's limit when the request does "
        "not say: cut them and report it, or answer 422.",
    )
    demo: bool = Field(
        True,
        description="Offer the collection `demo`, a few thousand real sentences in 42 languages, "
        "filled at first start. Ready turns on once it is there.",
    )
    language_sample_every: int = Field(
        32,
        ge=0,
        description="One embedded text in so many has its language detected (0.2 ms), for the metrics "
        "per language; 0 detects none. Smaller sees rare languages sooner.",
    )
    collections: bool = Field(
        True,
        description="Offer collections. Turn it off where several replicas serve embeddings only: "
        "each would have collections of its own, and a search would find what that one was given. "
        "Their routes then answer 404 and say so.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="API keys, as `mexma-keys` writes them: hashes, roles (metrics, read, write, admin, "
        "each includes those before it) and quotas in tokens a minute; a request of more is let in when the "
        "quota is whole, and the rest is owed. It is read again when it "
        "changes. A file that cannot be read then leaves the keys as they were, and "
        "`mexma_api_keys_valid` turns 0. Unset: everybody may do everything.",
    )
    audit_log: Path | None = Field(
        None,
        description="File of JSON lines that every administrator's act is written to before it is "
        "done and after, with the client, its key and its address (`x-forwarded-for`'s where a proxy on "
        "loopback sends it); of a reload the line after names the model and the fingerprints before and "
        "after. When that cannot be written, acts are refused. Unset: they are in the log.",
    )
    cors_origins: Origins = Field(
        (),
        description="Origins (`https://app.example.com`), separated by commas, whose pages may call "
        "from a browser. Pages of all others are refused whatever changes anything, and see no answer.",
    )
    tls_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM, for HTTPS instead of HTTP; needs `MEXMA_TLS_KEY`. "
        "TLS 1.2 at least. A renewed certificate is taken at the next start.",
    )
    tls_key: Path | None = Field(
        None, description="Private key of the certificate in PEM, without a passphrase."
    )
    otlp_endpoint: Annotated[str | None, AfterValidator(_address)] = Field(
        None,
        description="An OTLP/HTTP collector (`http://collector:4318`) that gets a trace of every "
        "request: tokenising, queue, engine, store. Needs the extra `otel`. Unset: nothing is traced.",
    )
    trace_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced, where a caller's `traceparent` does not say.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged. Texts are never logged, at any level."
    )
    log_format: LogFormat = Field(
        "text",
        description="`text` for people, `json` for machines: one object a line with time, level, "
        "logger, message, request_id and further fields.",
    )
    access_log: bool = Field(
        False,
        description="Log a line for every request: method, route, status, seconds. Requests that "
        "fail with 500 or 504 are logged without it, too.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_gpu(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("device") == "cuda":
            return GPU_DEFAULTS | given
        return given
