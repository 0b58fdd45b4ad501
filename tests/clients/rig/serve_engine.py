"""llama.cpp's own server, with as many slots as it is told: `python serve_engine.py MODEL SLOTS [embed]`."""

import os
import signal
import sys

import xllamacpp


def main(model: str, slots: int, embeds: bool) -> None:
    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.model_alias = {"tiny"}
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_parallel, settings.n_ctx = slots, slots * 512
    # Threads that wait for each other spin, and the machine has other things to do.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.endpoint_metrics = settings.use_jinja = True
    settings.warmup = False
    settings.cache_ram_mib = 0
    if embeds:
        settings.embedding = True
        # Not the mean: the server may work on a text in several parts, and takes that of the last one.
        settings.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    server = xllamacpp.Server(settings)
    # It would wait for plain requests under way; whoever ends it wants it gone.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("listening on", server.listening_address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "embed" in sys.argv[3:])
