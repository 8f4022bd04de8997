"""A plug-in of vLLM's: weights come as tensors of a file that an update names.

The control plane is vLLM's own, and so is how layers take their tensors (ipc_engine.py); what a GPU
would be needed for, NCCL or CUDA IPC, is left out.
"""

from dataclasses import dataclass

BACKEND = "file"


def register():
    """The entry point in vllm.general_plugins; may be called more than once."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _engine())


def _engine():
    from safetensors import safe_open
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    @dataclass
    class Init(WeightTransferInitInfo):
        pass

    @dataclass
    class Update(WeightTransferUpdateInfo):
        file: str
        names: list[str]

    class FileTransfer(WeightTransferEngine):
        init_info_cls = Init
        update_info_cls = Update

        def init_transfer_engine(self, init_info):
            pass

        def start_weight_update(self):
            initialize_layerwise_reload(self.model)

        def finish_weight_update(self):
            finalize_layerwise_reload(self.model, self.model_config)

        def update_weights(self, update_info):  # the inherited one synchronizes an accelerator
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info):
            with safe_open(update_info.file, framework="pt") as opened:
                self.model.load_weights([(n, opened.get_tensor(n)) for n in update_info.names])

        def shutdown(self):
            pass

    return FileTransfer
