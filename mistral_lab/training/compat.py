"""What this module uses of transformers that it does not document, with the versions in which it was seen."""

import torch
from transformers import Trainer


class ExpertsResumingTrainer(Trainer):
    """A Trainer that resumes a mixture of experts from a checkpoint, its experts included.

    Differs: the Trainer's own `_load_from_checkpoint` (transformers 5.15.0 to 5.24.0) skips every expert and router,
    with only a warning: a checkpoint names the matrices of each expert, and the model in memory has them fused.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Read a checkpoint as `from_pretrained` does."""
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())
