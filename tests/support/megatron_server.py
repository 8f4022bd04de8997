# ruff: noqa: ANN002, ANN003, D101, D102 (a script for an environment without our tools)
"""megatron-core's own text generation server on a CPU, with a stand-in for the model.

Run in an environment of megatron-core, never imported: `python megatron_server.py FILE`, which is
told the address. Its tokens are characters, and the answer repeats the alphabet.
"""

import string
import sys
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.inference import communication_utils
from megatron.core.inference.text_generation_server.text_generation_server import MegatronServer
from werkzeug.serving import make_server

_LIMIT = 4096
_tensor = torch.tensor


def _on_cpu(*values, device=None, **options):
    return _tensor(*values, device=device and "cpu", **options)


# the server takes CUDA for granted; one process broadcasts to nobody on a CPU as well
torch.cuda.current_device = lambda: "cpu"
torch.tensor = _on_cpu
communication_utils._is_cuda = lambda _: None


class Tokenizer:
    eod = 0

    def tokenize(self, text):
        return [ord(character) for character in text]

    def detokenize(self, ids):
        return "".join(chr(i) for i in ids if i)


class Controller:
    tokenizer = Tokenizer()
    sampling_rng = torch.Generator()


class Engine:
    controller = Controller()

    def get_new_request_id(self):
        return 0

    def generate(self, *, inference_requests):
        for request in inference_requests:
            prompt, sampling = request.prompt_tokens, request.sampling_params
            count = sampling.num_tokens_to_generate
            if len(prompt) + count > _LIMIT:
                raise ValueError(f"sequence length {len(prompt) + count} exceeds {_LIMIT}")
            letters = (string.ascii_lowercase * (count // 26 + 1))[: min(count, 30)]
            request.generated_text = letters
            request.generated_tokens = _tensor([ord(letter) for letter in letters])
            request.segments = [*map(chr, prompt), *letters]
            if sampling.return_log_probs:
                request.prompt_log_probs = [-float(place) for place in range(1, len(prompt))]
                request.generated_log_probs = [-0.5 for _ in letters]
        return inference_requests


torch.distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}.store", rank=0, world_size=1
)
parallel_state.initialize_model_parallel()
server = make_server("127.0.0.1", 0, MegatronServer(Engine()).app, threaded=True)
Path(sys.argv[1]).write_text(f"http://127.0.0.1:{server.port}", encoding="utf-8")
server.serve_forever()
